#include "basis.hpp"

#include <cmath>
#include <random>

namespace vosrt {
namespace {

// Gram and Schmidt, twice, which is enough for orthogonality to machine precision (Giraud et al. 2005). `axes` is [count][channels].
void orthonormalise(std::vector<double> &axes, int32_t count, int32_t channels) {
    const auto dot = [&](const double *a, const double *b) {
        double sum = 0.0;
        for (int32_t c = 0; c < channels; ++c) sum += a[c] * b[c];
        return sum;
    };
    for (int32_t i = 0; i < count; ++i) {
        double *axis = axes.data() + static_cast<size_t>(i) * channels;
        const double before = std::sqrt(dot(axis, axis));
        for (int32_t pass = 0; pass < 2; ++pass)
            for (int32_t j = 0; j < i; ++j) {
                const double *other = axes.data() + static_cast<size_t>(j) * channels;
                const double share = dot(axis, other);
                for (int32_t c = 0; c < channels; ++c) axis[c] -= share * other[c];
            }
        const double after = std::sqrt(dot(axis, axis));
        const bool spans = after > 1e-5 * before;  // else it is rounding error of the axes before it
        for (int32_t c = 0; c < channels; ++c) axis[c] = spans ? axis[c] / after : 0.0;
    }
}

}  // namespace

// Orthogonal iteration (Golub and Van Loan 2013, section 8.2.4): the span of the first j axes comes out as it would of j alone, so that
// any prefix serves. The bound needs orthonormal axes, not exact ones: a few rounds do, and no covariance is formed.
std::vector<float> principal_axes(const std::vector<float> &samples, int32_t channels, int32_t count, int32_t stride, bool by_direction,
                                  int32_t rounds) {
    std::vector<float> rows;
    rows.reserve(samples.size());
    for (size_t at = 0; at + channels <= samples.size(); at += channels) {
        double square = 0.0;
        for (int32_t c = 0; c < channels; ++c) square += static_cast<double>(samples[at + c]) * samples[at + c];
        if (!(square > 0.0 && std::isfinite(square))) continue;
        const double scale = by_direction ? 1.0 / std::sqrt(square) : 1.0;
        for (int32_t c = 0; c < channels; ++c) rows.push_back(static_cast<float>(samples[at + c] * scale));
    }
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    std::vector<double> axes(static_cast<size_t>(count) * channels);
    for (double &value : axes) value = normal(random);
    orthonormalise(axes, count, channels);

    std::vector<float> across(static_cast<size_t>(channels) * count), next(across.size()), along(count);  // axes side by side
    for (int32_t round = 0; round < rounds; ++round) {
        for (int32_t i = 0; i < count; ++i)
            for (int32_t c = 0; c < channels; ++c)
                across[static_cast<size_t>(c) * count + i] = static_cast<float>(axes[static_cast<size_t>(i) * channels + c]);
        next.assign(next.size(), 0.0f);
        for (size_t at = 0; at < rows.size(); at += channels) {
            along.assign(count, 0.0f);
            for (int32_t c = 0; c < channels; ++c)
                for (int32_t i = 0; i < count; ++i) along[i] += rows[at + c] * across[static_cast<size_t>(c) * count + i];
            for (int32_t c = 0; c < channels; ++c)
                for (int32_t i = 0; i < count; ++i) next[static_cast<size_t>(c) * count + i] += rows[at + c] * along[i];
        }
        for (int32_t i = 0; i < count; ++i)
            for (int32_t c = 0; c < channels; ++c)
                axes[static_cast<size_t>(i) * channels + c] = next[static_cast<size_t>(c) * count + i];
        orthonormalise(axes, count, channels);
    }
    std::vector<float> out(static_cast<size_t>(count) * stride, 0.0f);
    for (int32_t i = 0; i < count; ++i)
        for (int32_t c = 0; c < channels; ++c)
            out[static_cast<size_t>(i) * stride + c] = static_cast<float>(axes[static_cast<size_t>(i) * channels + c]);
    return out;
}

}  // namespace vosrt
