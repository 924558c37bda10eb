// The closed loop that keeps objects from eroding or spreading: what a calibration computes. CPU memories and CUDA kernels share it;
// nvcc compiles constexpr functions for GPUs too.
//
// The mask that a user gave is the one truth of a video. Every few frames each cell of it, and those around it, looks for the most
// similar cell of the newest frame, so that the newest soft masks come back to where the truth is known. Where they are undecided,
// p (1 - p) is large, and the truth says which side undecided cells are on: if most of them are the object's, masks have been
// eroding, and the object gets a larger factor in what is remembered from then on.
#pragma once

#include <cstdint>

namespace vosrt::calibration {

inline constexpr int32_t kMargin = 3;                     // cells around an object that look back too
inline constexpr float kLeastSoft = 0.02f;                // of a cell that counts as an object's
inline constexpr double kEvidence = 1.0;                  // undecided cells, half of them the object's, that are always added: few others then change little
inline constexpr float kLowest = -0.4f, kHighest = 0.6f;  // of what is added to the bias

// How undecided a soft mask is.
constexpr double undecided(float soft) { return static_cast<double>(soft) * (1.0 - static_cast<double>(soft)); }

// The odds that an undecided cell is the object's, which `inside` of the `total` of undecided() is.
constexpr double odds(double inside, double total) { return (inside + 0.5 * kEvidence) / (total - inside + 0.5 * kEvidence); }

// What is added to the logarithm of an object's factor.
constexpr float correction(double log_odds) {
    const auto added = static_cast<float>(log_odds);
    return added > kHighest ? kHighest : added > kLowest ? added
                                                         : kLowest;
}

}  // namespace vosrt::calibration
