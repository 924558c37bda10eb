// The closed loop that keeps objects from eroding: what a calibration computes. CPU memories and CUDA kernels share it;
// nvcc compiles constexpr functions for GPUs too.
//
// The mask that a user gave is the one truth of a video. Every few frames each cell of it, and those around it, looks for the most
// similar cell of the newest frame, so that the newest soft masks come back to where the truth is known. Where they are undecided,
// p (1 - p) is large, and the truth says which side undecided cells are on: if most of them are the object's, masks have been
// eroding, and the object gets a larger factor in what is remembered from then on. The opposite does not show that it has spread: a
// part that is lost is no longer undecided.
#pragma once

#include <cstdint>

namespace vosrt::calibration {

inline constexpr int32_t kMargin = 3;       // cells around an object that look back too
inline constexpr float kLeastSoft = 0.02f;  // of a cell that counts as an object's
inline constexpr double kEvidence = 1.0;    // undecided cells, half of them the object's, that are always added: few others then change little
inline constexpr float kHighest = 0.6f;     // of what is added to the bias

inline constexpr double kGone = 0.25;  // share of an object's mass; one of which less is found again is not eroding, it has left

// What the cells that look back find of one object.
struct Evidence {
    double inside = 0.0, total = 0.0;     // how undecided soft masks are where they went: the object's part, and all
    double found = 0.0, annotated = 0.0;  // soft masks where they went, and as annotated

    constexpr void add(float truth, float soft) {
        const double undecided = static_cast<double>(soft) * (1.0 - static_cast<double>(soft));
        add({undecided * static_cast<double>(truth), undecided, static_cast<double>(soft), static_cast<double>(truth)});
    }
    constexpr void add(const Evidence &other) {
        inside += other.inside;
        total += other.total;
        found += other.found;
        annotated += other.annotated;
    }
    // The odds that an undecided cell is the object's; even where the object has left.
    constexpr double odds() const {
        return found < kGone * annotated ? 1.0 : (inside + 0.5 * kEvidence) / (total - inside + 0.5 * kEvidence);
    }
};

// What is added to the logarithm of an object's factor.
constexpr float correction(double log_odds) {
    const auto added = static_cast<float>(log_odds);
    return added > kHighest ? kHighest : added > 0.0f ? added
                                                      : 0.0f;
}

}  // namespace vosrt::calibration
