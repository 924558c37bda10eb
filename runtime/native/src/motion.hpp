// Common fate: what moves as an object does is the object's. CPU memories and CUDA kernels share the rule; nvcc compiles constexpr
// functions for GPUs too.
//
// Where a cell's candidates lie in the last few frames says how it moved. Soft masks divide the cells around it into those of each
// object and of the background, whose mean steps are compared with its own: a surface that no frame in memory shows, such as the side
// of a car that turns, still moves as the car does.
#pragma once

#include <cstdint>

namespace vosrt::motion {

inline constexpr int32_t kAges = 4;           // frames back
inline constexpr int32_t kReach = 14;         // cells to every side whose steps are averaged
inline constexpr float kTemperature = 0.02f;  // of the softmax that weighs candidates: the most similar ones say where a cell was
inline constexpr float kNoise = 0.4f;         // cells that a step is off
inline constexpr float kMost = 3.0f;          // of a distance, in units of noise: a wild step says no more than that
inline constexpr float kEnough = 4.0f;        // cells of a mask that its mean step is to be trusted for
inline constexpr float kDoubt = 0.05f;        // weight of no evidence

// Where a cell was some frames before, relative to where it is, and the share of its candidates that say so.
struct Step {
    float weight = 0.0f, dy = 0.0f, dx = 0.0f;

    constexpr void add(float share, float y, float x) {
        weight += share;
        dy += share * y;
        dx += share * x;
    }
    // Sums become means.
    constexpr void finish(float total) {
        if (weight > 0.0f) {
            dy /= weight;
            dx /= weight;
        }
        weight /= total;
    }
};

// Steps of the cells of one mask, added up over a window.
template <class Number>
struct Sums {
    Number weight = 0, dy = 0, dx = 0;

    constexpr void add(const Step &step, float soft, float sign = 1.0f) {
        const float share = step.weight * soft;
        weight += sign * share;
        dy += sign * share * step.dy;
        dx += sign * share * step.dx;
    }
    template <class Other>
    constexpr void add(const Sums<Other> &other, float sign = 1.0f) {
        weight += sign * other.weight;
        dy += sign * other.dy;
        dx += sign * other.dx;
    }
    constexpr float support() const { return weight < kEnough ? static_cast<float>(weight) / kEnough : 1.0f; }
    // The square of a step's distance from the mean one; not a number where there is none.
    constexpr float squared_distance(const Step &step) const {
        const float y = step.dy - static_cast<float>(dy / weight), x = step.dx - static_cast<float>(dx / weight);
        return y * y + x * x;
    }
};

constexpr float in_noise(float distance) {
    const float units = distance / kNoise;
    return units < kMost ? units : kMost;
}

}  // namespace vosrt::motion
