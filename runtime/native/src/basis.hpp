// Principal axes of a video's features: the few directions that hold most of their energy.
#pragma once

#include <cstdint>
#include <vector>

namespace vosrt {

// `count` axes of `samples` f32 [n][channels], about the origin, by falling energy: f32 [count][stride], orthonormal, what lies past the
// channels zero. Samples count by direction alone; those that are zero or not finite do not count. Where samples span fewer
// directions, the axes that are left over are zero. Where samples are the
// rows of a covariance, `by_direction` is false, as their length counts, and more `rounds` give the axes themselves.
std::vector<float> principal_axes(const std::vector<float> &samples, int32_t channels, int32_t count, int32_t stride, bool by_direction = true,
                                  int32_t rounds = 4);

}  // namespace vosrt
