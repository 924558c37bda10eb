#include "prompt.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <utility>

#include "basis.hpp"
#include "error.hpp"
#include "resample.hpp"

namespace vosrt {
namespace {

constexpr int32_t kFine = 2;                           // cells of the fine grid per cell of the encoder, along each axis
constexpr float kHard = 50.0f;                         // weight of a click against that of an edge, which is at most 1
constexpr float kDiagonal = 0.7f;                      // weight of an edge to a diagonal neighbour
constexpr int32_t kLevels = 48;                        // level sets of a random walk that are compared
constexpr int32_t kSmallest = 4, kSmallestUsual = 12;  // cells of the smallest region that a click selects, in tiny frames and in others
constexpr float kLargest = 0.6f;                       // share of the frame that the first click may select
constexpr int32_t kSampled = 8192, kAxisRounds = 20;   // cells that the axes of the features are found from; rounds until they are exact
// Of boxes: the share of a box that an object is taken to fill at first, what colour and place count against features, how many of the most
// similar cells outside are compared, how much the middle counts; the part of its box that an object covers.
constexpr int32_t kBoxRounds = 4, kBoxNearest = 4;
constexpr float kBoxFilled = 0.5f, kBoxColour = 0.5f, kBoxPlace = 0.2f, kBoxMiddle = 0.1f, kLeastFilled = 0.2f;
constexpr int32_t kGuideRadius = 6;  // pixels of the working frame at half its size
constexpr int32_t kPlaces = 6;       // inputs of the classifier besides looks: place, its products, and 1

double sum_of(const Plane &values) { return std::accumulate(values.begin(), values.end(), 0.0); }
int32_t count_of(const Bits &bits) {
    return static_cast<int32_t>(std::count_if(bits.begin(), bits.end(), [](uint8_t each) { return each != 0; }));
}

// Axes of most variance, scaled to a total variance of 1: [n][count]. Of the axes, only what they span matters here.
Plane principal(const float *features, int32_t n, int32_t channels, int32_t count) {
    std::vector<double> sums(channels, 0.0);
    for (int32_t i = 0; i < n; ++i)
        for (int32_t c = 0; c < channels; ++c) sums[c] += features[static_cast<size_t>(i) * channels + c];
    Plane mean(channels);
    for (int32_t c = 0; c < channels; ++c) mean[c] = static_cast<float>(sums[c] / n);
    const int32_t step = std::max(1, (n + kSampled - 1) / kSampled);
    Plane covariance(static_cast<size_t>(channels) * channels, 0.0f), centred(channels);
    double variance = 0.0;
    for (int32_t i = 0; i < n; i += step) {
        for (int32_t c = 0; c < channels; ++c) centred[c] = features[static_cast<size_t>(i) * channels + c] - mean[c];
        for (int32_t a = 0; a < channels; ++a) {
            const float value = centred[a];
            float *to = covariance.data() + static_cast<size_t>(a) * channels;
            variance += static_cast<double>(value) * value;
            for (int32_t b = 0; b < channels; ++b) to[b] += value * centred[b];
        }
    }
    const double counted = (n + step - 1) / step;
    const Plane axes = principal_axes(covariance, channels, count, channels, false, kAxisRounds);
    Plane across(static_cast<size_t>(channels) * count);
    for (int32_t k = 0; k < count; ++k)
        for (int32_t c = 0; c < channels; ++c) across[static_cast<size_t>(c) * count + k] = axes[static_cast<size_t>(k) * channels + c];
    const float scale = static_cast<float>(1.0 / std::sqrt(std::max(variance / counted, 1e-12)));
    Plane out(static_cast<size_t>(n) * count, 0.0f);
    for (int32_t i = 0; i < n; ++i) {
        float *to = out.data() + static_cast<size_t>(i) * count;
        for (int32_t c = 0; c < channels; ++c) {
            const float value = (features[static_cast<size_t>(i) * channels + c] - mean[c]) * scale;
            const float *axis = across.data() + static_cast<size_t>(c) * count;
            for (int32_t k = 0; k < count; ++k) to[k] += value * axis[k];
        }
    }
    return out;
}

// CIELAB (CIE 1976) of sRGB 0 to 1 under D65.
std::array<float, 3> to_lab(const std::array<float, 3> &bgr) {
    const auto linear = [](double v) { return v <= 0.04045 ? v / 12.92 : std::pow((v + 0.055) / 1.055, 2.4); };
    const double b = linear(bgr[0]), g = linear(bgr[1]), r = linear(bgr[2]);
    const auto root = [](double t) { return t > 0.008856 ? std::cbrt(t) : 7.787 * t + 16.0 / 116.0; };
    const double x = root((0.412453 * r + 0.357580 * g + 0.180423 * b) / 0.950456);
    const double y = root(0.212671 * r + 0.715160 * g + 0.072169 * b);
    const double z = root((0.019334 * r + 0.119193 * g + 0.950227 * b) / 1.088754);
    return {static_cast<float>(116.0 * y - 16.0), static_cast<float>(500.0 * (x - y)), static_cast<float>(200.0 * (y - z))};
}

// Mean colour of each cell of `side` pixels in CIELAB, scaled to a total variance of 1; what lies past the frame repeats its border.
Plane colours(const uint8_t *bgr, int32_t frame_height, int32_t frame_width, int32_t rows, int32_t columns, int32_t side) {
    Plane out(static_cast<size_t>(rows) * columns * 3);
    std::array<double, 3> sum{}, squares{};
    for (int32_t row = 0; row < rows; ++row)
        for (int32_t column = 0; column < columns; ++column) {
            std::array<int32_t, 3> total{};
            for (int32_t y = row * side; y < (row + 1) * side; ++y)
                for (int32_t x = column * side; x < (column + 1) * side; ++x) {
                    const uint8_t *pixel = bgr + (static_cast<size_t>(std::min(y, frame_height - 1)) * frame_width + std::min(x, frame_width - 1)) * 3;
                    for (size_t c = 0; c < 3; ++c) total[c] += pixel[c];
                }
            std::array<float, 3> mean{};
            for (size_t c = 0; c < 3; ++c) mean[c] = std::nearbyint(static_cast<float>(total[c]) / static_cast<float>(side * side)) / 255.0f;
            const auto lab = to_lab(mean);
            for (size_t c = 0; c < 3; ++c) {
                out[(static_cast<size_t>(row) * columns + column) * 3 + c] = lab[c];
                sum[c] += lab[c];
                squares[c] += static_cast<double>(lab[c]) * lab[c];
            }
        }
    const double n = static_cast<double>(rows) * columns;
    double variance = 0.0;
    for (size_t c = 0; c < 3; ++c) variance += squares[c] / n - (sum[c] / n) * (sum[c] / n);
    const float scale = static_cast<float>(1.0 / std::sqrt(std::max(variance, 1e-3)));
    for (float &value : out) value *= scale;
    return out;
}

// Bilinear, pixel centres at half-integers, edges repeated: [h][w][n] -> [H][W][n].
Plane resized(const Plane &values, int32_t height, int32_t width, int32_t n, int32_t to_height, int32_t to_width) {
    SampleAxis rows, columns;
    rows.set(height, to_height, Alignment::half_pixel);
    columns.set(width, to_width, Alignment::half_pixel);
    Plane out(static_cast<size_t>(to_height) * to_width * n);
    for (int32_t y = 0; y < to_height; ++y) {
        const float *upper = values.data() + static_cast<size_t>(rows.first[y]) * width * n;
        const float *lower = values.data() + static_cast<size_t>(rows.second[y]) * width * n;
        const float down = rows.weight[y];
        float *to = out.data() + static_cast<size_t>(y) * to_width * n;
        for (int32_t x = 0; x < to_width; ++x, to += n) {
            const size_t left = static_cast<size_t>(columns.first[x]) * n, right = static_cast<size_t>(columns.second[x]) * n;
            const float on = columns.weight[x];
            for (int32_t c = 0; c < n; ++c) {
                const float above = upper[left + c] + on * (upper[right + c] - upper[left + c]);
                const float below = lower[left + c] + on * (lower[right + c] - lower[left + c]);
                to[c] = above + down * (below - above);
            }
        }
    }
    return out;
}

// The share of each cell that the mask covers: pixels count by how much of them lies in the cell.
Plane covered(const Bits &mask, int32_t height, int32_t width, int32_t rows, int32_t columns) {
    const auto shares = [](int32_t size, int32_t cells, int32_t cell, std::vector<std::pair<int32_t, double>> &out) {
        out.clear();
        const double from = static_cast<double>(cell) * size / cells, to = static_cast<double>(cell + 1) * size / cells;
        for (auto i = static_cast<int32_t>(from); i < size && i < to; ++i)
            out.emplace_back(i, (std::min(to, i + 1.0) - std::max(from, static_cast<double>(i))) / (to - from));
    };
    Plane across(static_cast<size_t>(height) * columns, 0.0f), out(static_cast<size_t>(rows) * columns, 0.0f);
    std::vector<std::pair<int32_t, double>> parts;
    for (int32_t column = 0; column < columns; ++column) {
        shares(width, columns, column, parts);
        for (int32_t y = 0; y < height; ++y)
            for (const auto &[x, share] : parts)
                if (mask[static_cast<size_t>(y) * width + x] != 0) across[static_cast<size_t>(y) * columns + column] += static_cast<float>(share);
    }
    for (int32_t row = 0; row < rows; ++row) {
        shares(height, rows, row, parts);
        for (const auto &[y, share] : parts)
            for (int32_t column = 0; column < columns; ++column)
                out[static_cast<size_t>(row) * columns + column] += static_cast<float>(share) * across[static_cast<size_t>(y) * columns + column];
    }
    return out;
}

// A cell and its four neighbours.
void mark_spot(Bits &bits, int32_t height, int32_t width, int32_t row, int32_t column) {
    for (const auto &[down, right] : {std::pair{0, 0}, {-1, 0}, {1, 0}, {0, -1}, {0, 1}}) {
        const int32_t y = row + down, x = column + right;
        if (y >= 0 && y < height && x >= 0 && x < width) bits[static_cast<size_t>(y) * width + x] = 1;
    }
}

// Connected parts of what is set, numbered from 1, and their sizes from index 1 on.
struct Parts {
    std::vector<int32_t> of;
    std::vector<int64_t> sizes{0};
};

Parts parts_of(const Bits &bits, int32_t height, int32_t width, bool diagonal) {
    Parts out;
    out.of.assign(bits.size(), 0);
    std::vector<int32_t> open;
    for (int32_t first = 0; first < height * width; ++first) {
        if (bits[first] == 0 || out.of[first] != 0) continue;
        const auto number = static_cast<int32_t>(out.sizes.size());
        int64_t size = 0;
        open.assign(1, first);
        out.of[first] = number;
        while (!open.empty()) {
            const int32_t at = open.back(), y = at / width, x = at % width;
            open.pop_back();
            ++size;
            for (int32_t ny = std::max(y - 1, 0); ny <= std::min(y + 1, height - 1); ++ny)
                for (int32_t nx = std::max(x - 1, 0); nx <= std::min(x + 1, width - 1); ++nx) {
                    const int32_t next = ny * width + nx;
                    if ((!diagonal && ny != y && nx != x) || bits[next] == 0 || out.of[next] != 0) continue;
                    out.of[next] = number;
                    open.push_back(next);
                }
        }
        out.sizes.push_back(size);
    }
    return out;
}

// Solves the symmetric, positive definite `a` [n][n] x = b by Cholesky's factors.
std::vector<double> solved(std::vector<double> a, std::vector<double> b) {
    const size_t n = b.size();
    for (size_t i = 0; i < n; ++i)
        for (size_t j = 0; j <= i; ++j) {
            double sum = a[i * n + j];
            for (size_t k = 0; k < j; ++k) sum -= a[i * n + k] * a[j * n + k];
            a[i * n + j] = i == j ? std::sqrt(std::max(sum, 1e-30)) : sum / a[j * n + j];
        }
    for (size_t i = 0; i < n; ++i) {
        for (size_t k = 0; k < i; ++k) b[i] -= a[i * n + k] * b[k];
        b[i] /= a[i * n + i];
    }
    for (size_t i = n; i-- > 0;) {
        for (size_t k = i + 1; k < n; ++k) b[i] -= a[k * n + i] * b[k];
        b[i] /= a[i * n + i];
    }
    return b;
}

// The ellipse that fills a box of cells; all of a box that is too small for one.
Plane ellipse(const Bits &allowed, int32_t height, int32_t width) {
    int32_t top = height, bottom = 0, left = width, right = 0;
    for (int32_t y = 0; y < height; ++y)
        for (int32_t x = 0; x < width; ++x)
            if (allowed[static_cast<size_t>(y) * width + x] != 0) {
                top = std::min(top, y), bottom = std::max(bottom, y + 1);
                left = std::min(left, x), right = std::max(right, x + 1);
            }
    Plane out(allowed.size(), 0.0f);
    const bool tiny = std::min(bottom - top, right - left) < 3;
    for (int32_t y = top; y < bottom; ++y)
        for (int32_t x = left; x < right; ++x) {
            const double v = (y - top + 0.5) / ((bottom - top) / 2.0) - 1.0, u = (x - left + 0.5) / ((right - left) / 2.0) - 1.0;
            if (tiny || u * u + v * v <= 1.0) out[static_cast<size_t>(y) * width + x] = 1.0f;
        }
    return out;
}

// What the classifier sees of place besides looks.
struct Placing {
    std::array<double, 2> middle{}, spread{};
    float weight;

    void write(const float *place, float *out) const {
        std::array<float, 2> at{};
        for (size_t i = 0; i < 2; ++i) at[i] = weight * static_cast<float>(std::clamp((place[i] - middle[i]) / spread[i], -4.0, 4.0));
        const float values[kPlaces] = {at[0], at[1], at[0] * at[0], at[1] * at[1], at[0] * at[1], 1.0f};
        std::copy_n(values, kPlaces, out);
    }
};

}  // namespace

vosrt_prompt_options default_prompt_options() {
    vosrt_prompt_options out{};
    out.struct_size = sizeof out;
    out.dimensions = 48;
    out.feature_edges = 3.0f, out.colour_edges = 0.7f, out.floor = 1e-3f;
    out.leak = 3e-5f, out.border = 0.5f, out.agreement = 3e-3f, out.balance = 0.5f, out.later_balance = 0.5f;
    out.grow = 1.5f, out.shrink = 0.5f, out.reach = 8.0f;
    out.ridge = 3.3e-3f, out.gain = 6.0f, out.click_share = 0.29f, out.place = 1.5f, out.keep = 0.17f, out.prior = 0.047f;
    out.fine_feature_edges = 1.2f, out.fine_colour_edges = 0.5f, out.fine_floor = 5e-3f;
    out.crumbs = 0.3f, out.holes = 0.042f;
    return out;
}

CellGraph::CellGraph(int32_t height_, int32_t width_, int32_t channels_, Plane features_, const Plane &colours, float feature_edges,
                     float colour_edges, float floor)
    : height(height_), width(width_), channels(channels_), inputs(channels_ + 6), features(std::move(features_)), pad(width_ + 1) {
    const int32_t n = cells();
    looks.resize(static_cast<size_t>(n) * inputs);
    places.resize(static_cast<size_t>(n) * 2);
    const double side = std::sqrt(static_cast<double>(n));
    for (int32_t i = 0; i < n; ++i) {
        float *look = looks.data() + static_cast<size_t>(i) * inputs;
        std::copy_n(features.data() + static_cast<size_t>(i) * channels, channels, look);
        for (int32_t c = 0; c < 3; ++c) {
            const float colour = colours[static_cast<size_t>(i) * 3 + c];
            look[channels + c] = colour;
            look[channels + 3 + c] = 0.5f * colour * colour;
        }
        places[static_cast<size_t>(i) * 2] = static_cast<float>(i / width / side);
        places[static_cast<size_t>(i) * 2 + 1] = static_cast<float>(i % width / side);
    }
    // Squared differences of features and of colours to each neighbour, in units of their mean.
    std::array<Plane, 4> by_colour;
    std::array<double, 2> scale{};
    for (size_t s = 0; s < 4; ++s) {
        edges[s].assign(static_cast<size_t>(n) + 2 * pad, -1.0f);
        by_colour[s].assign(n, 0.0f);
        std::array<double, 2> sum{};
        int64_t pairs = 0;
        for (int32_t i = 0; i < n; ++i) {
            const int32_t x = i % width, j = i + steps()[s];
            if (j >= n || (s == 3 ? x == 0 : s != 1 && x == width - 1)) continue;
            const auto apart = [&](const float *values, int32_t count) {
                float total = 0.0f;
                for (int32_t c = 0; c < count; ++c) {
                    const float d = values[static_cast<size_t>(i) * count + c] - values[static_cast<size_t>(j) * count + c];
                    total += d * d;
                }
                return total;
            };
            sum[0] += edges[s][pad + i] = apart(features.data(), channels);
            sum[1] += by_colour[s][i] = apart(colours.data(), 3);
            ++pairs;
        }
        for (size_t k = 0; k < 2; ++k) scale[k] += pairs == 0 ? 0.0 : sum[k] / static_cast<double>(pairs) / 4.0;
    }
    for (double &each : scale) each = std::max(each, 1e-12);
    double total = 0.0;
    for (size_t s = 0; s < 4; ++s)
        for (int32_t i = -pad; i < n + pad; ++i) {
            float &edge = edges[s][pad + i];
            if (edge < 0.0f) {
                edge = 0.0f;
                continue;
            }
            const double apart = feature_edges * edge / scale[0] + colour_edges * by_colour[s][i] / scale[1];
            edge = static_cast<float>((std::exp(-std::min(apart, 30.0)) + floor) * (s > 1 ? kDiagonal : 1.0f));
            total += 2.0 * edge;
        }
    mean_degree = static_cast<float>(total / n);
}

Plane CellGraph::walk(const Plane &weights, const Plane &pulls, Plane x, int32_t rounds, float tolerance, const Bits *inside) const {
    const int32_t n = cells();
    const auto offsets = steps();
    std::array<Plane, 4> cut;
    const std::array<Plane, 4> *own = &edges;
    if (inside != nullptr) {
        cut = edges;
        for (size_t s = 0; s < 4; ++s)
            for (int32_t i = 0; i < n; ++i)
                if (cut[s][pad + i] != 0.0f && ((*inside)[i] == 0 || (*inside)[i + offsets[s]] == 0)) cut[s][pad + i] = 0.0f;
        own = &cut;
    }
    Plane diagonal(weights), wide(static_cast<size_t>(n) + 2 * pad, 0.0f), applied(n), residual(n), scaled(n);
    for (size_t s = 0; s < 4; ++s) {
        const float *edge = (*own)[s].data() + pad;
        for (int32_t i = 0; i < n; ++i) diagonal[i] += edge[i] + edge[i - offsets[s]];
    }
    // `wide` holds the operand between its pads.
    const auto apply = [&] {
        const float *at = wide.data() + pad;
        for (int32_t i = 0; i < n; ++i) applied[i] = diagonal[i] * at[i];
        for (size_t s = 0; s < 4; ++s) {
            const float *edge = (*own)[s].data() + pad;
            const int32_t o = offsets[s];
            for (int32_t i = 0; i < n; ++i) applied[i] -= edge[i] * at[i + o] + edge[i - o] * at[i - o];
        }
    };
    // In lanes, which compilers make vectors of: a sum in one chain waits for each addition.
    constexpr int32_t kLanes = 8;
    const auto dot = [n](const float *a, const float *b) {
        std::array<double, kLanes> sums{};
        int32_t i = 0;
        for (; i + kLanes <= n; i += kLanes)
            for (int32_t k = 0; k < kLanes; ++k) sums[static_cast<size_t>(k)] += static_cast<double>(a[i + k]) * b[i + k];
        for (; i < n; ++i) sums[0] += static_cast<double>(a[i]) * b[i];
        return std::accumulate(sums.begin(), sums.end(), 0.0);
    };
    const auto largest = [n](const float *a) {
        std::array<float, kLanes> most{};
        int32_t i = 0;
        for (; i + kLanes <= n; i += kLanes)
            for (int32_t k = 0; k < kLanes; ++k) most[static_cast<size_t>(k)] = std::max(most[static_cast<size_t>(k)], std::abs(a[i + k]));
        for (; i < n; ++i) most[0] = std::max(most[0], std::abs(a[i]));
        return *std::max_element(most.begin(), most.end());
    };
    float *direction = wide.data() + pad;
    std::copy(x.begin(), x.end(), direction);
    apply();
    for (int32_t i = 0; i < n; ++i) {
        residual[i] = pulls[i] - applied[i];
        direction[i] = scaled[i] = residual[i] / diagonal[i];
    }
    double size = dot(residual.data(), scaled.data());
    for (int32_t round = 0; round < rounds && size > 1e-20; ++round) {
        apply();
        const float step = static_cast<float>(size / std::max(dot(direction, applied.data()), 1e-20));
        for (int32_t i = 0; i < n; ++i) {
            x[i] += step * direction[i];
            residual[i] -= step * applied[i];
        }
        if (largest(direction) * std::abs(step) < tolerance) break;
        for (int32_t i = 0; i < n; ++i) scaled[i] = residual[i] / diagonal[i];
        const double before = std::exchange(size, dot(residual.data(), scaled.data()));
        const float kept = static_cast<float>(size / before);
        for (int32_t i = 0; i < n; ++i) direction[i] = scaled[i] + kept * direction[i];
    }
    return x;
}

namespace {

CellGraph coarse_graph(const vosrt_embedding &frame, int32_t cell, const vosrt_prompt_options &options) {
    const int32_t h = frame.grid_height, w = frame.grid_width, count = std::min(options.dimensions, frame.channels);
    return {h, w, count, principal(frame.array, h * w, frame.channels, count), colours(frame.bgr, frame.height, frame.width, h, w, cell),
            options.feature_edges, options.colour_edges, options.floor};
}

CellGraph fine_graph(const CellGraph &coarse, const vosrt_embedding &frame, int32_t cell, const vosrt_prompt_options &options) {
    const int32_t h = coarse.height * kFine, w = coarse.width * kFine;
    return {h, w, coarse.channels, resized(coarse.features, coarse.height, coarse.width, coarse.channels, h, w),
            colours(frame.bgr, frame.height, frame.width, h, w, std::max(1, cell / kFine)), options.fine_feature_edges, options.fine_colour_edges, options.fine_floor};
}

}  // namespace

Prompt::Prompt(const vosrt_embedding &frame, int32_t cell, const vosrt_prompt_options &options)
    : options_(options),
      height_(frame.frame_height),
      width_(frame.frame_width),
      cells_(coarse_graph(frame, cell, options)),
      fine_(fine_graph(cells_, frame, cell, options)),
      scale_x_(static_cast<double>(frame.grid_width) * cell / frame.width),
      scale_y_(static_cast<double>(frame.grid_height) * cell / frame.height),
      guide_(kGuideRadius) {
    guide_.set(frame.bgr, frame.height, frame.width, int64_t{3} * frame.width);
}

void Prompt::segment(Clicks clicks, const std::optional<Box> &box, const Picture *mask, uint8_t *out) {
    bool marked = box || mask != nullptr;
    for (const Click &each : clicks) {
        if (!(each.x >= 0 && each.x < static_cast<float>(width_) && each.y >= 0 && each.y < static_cast<float>(height_)))
            invalid("the point (" + std::to_string(each.x) + ", " + std::to_string(each.y) + ") is outside the frame; expected x below " +
                    std::to_string(width_) + ", y below " + std::to_string(height_));
        marked = marked || each.positive;
    }
    if (!marked) invalid("nothing is marked; give a positive point, a box or a mask");
    if (box) {
        const auto [x, y, w, h] = *box;
        if (!(w > 0 && h > 0 && x >= 0 && y >= 0 && x + w <= static_cast<float>(width_) && y + h <= static_cast<float>(height_)))
            invalid("the box is empty or outside the frame");
    }
    Bits given;
    if (mask != nullptr) {
        if (mask->height != height_ || mask->width != width_) invalid("the mask has another size than the frame");
        given.resize(static_cast<size_t>(height_) * width_);
        for (int32_t y = 0; y < height_; ++y)
            for (int32_t x = 0; x < width_; ++x) given[static_cast<size_t>(y) * width_ + x] = mask->data[y * mask->stride + x] != 0;
    }
    if (states_.empty() || box != box_ || given != mask_) {
        states_.clear();
        clicks_.clear();
        box_ = box;
        mask_ = std::move(given);
        states_.push_back(begin());
    }
    size_t same = 0;
    while (same < clicks.size() && same < clicks_.size() && clicks[same] == clicks_[same]) ++same;
    clicks_.resize(same);
    states_.resize(same + 1);
    for (size_t i = same; i < clicks.size(); ++i) {
        states_.push_back(click(states_.back(), clicks.first(i + 1)));
        clicks_.push_back(clicks[i]);
    }
    finish(states_.back(), clicks, out);
}

// The mask before the first click.
Prompt::State Prompt::begin() const {
    const size_t n = fine_.cells();
    State state{Plane(n, 0.0f), Plane(n, 0.0f), {}};
    if (!mask_.empty()) {  // cells beyond the frame repeat its border
        const int32_t w = std::clamp(static_cast<int32_t>(std::nearbyint(fine_.width / scale_x_)), 1, fine_.width);
        const int32_t h = std::clamp(static_cast<int32_t>(std::nearbyint(fine_.height / scale_y_)), 1, fine_.height);
        const Plane seen = covered(mask_, height_, width_, h, w);
        for (int32_t y = 0; y < fine_.height; ++y)
            for (int32_t x = 0; x < fine_.width; ++x)
                state.soft[static_cast<size_t>(y) * fine_.width + x] = seen[static_cast<size_t>(std::min(y, h - 1)) * w + std::min(x, w - 1)];
    }
    if (!box_) return mask_.empty() ? state : refit(state, {});
    state.allowed = inside(*box_);
    if (mask_.empty()) state.soft = stands_out(state.allowed);
    for (size_t i = 0; i < n; ++i)
        if (state.allowed[i] == 0) state.soft[i] = 0.0f;
    for (int32_t round = 0; round < kBoxRounds; ++round) state = refit(state, {});
    if (sum_of(state.soft) < kLeastFilled * static_cast<float>(count_of(state.allowed)))  // something else was found, or nothing
        state.soft = ellipse(state.allowed, fine_.height, fine_.width);
    return state;
}

// The cells of the fine grid that a box touches.
Bits Prompt::inside(const Box &box) const {
    const auto column = [&](float x) { return static_cast<double>(x) / width_ * fine_.width / scale_x_; };
    const auto row = [&](float y) { return static_cast<double>(y) / height_ * fine_.height / scale_y_; };
    const auto left = static_cast<int32_t>(column(box[0])), top = static_cast<int32_t>(row(box[1]));
    const auto right = std::max(static_cast<int32_t>(std::ceil(column(box[0] + box[2]))), left + 1);
    const auto bottom = std::max(static_cast<int32_t>(std::ceil(row(box[1] + box[3]))), top + 1);
    Bits out(fine_.cells(), 0);
    for (int32_t y = top; y < std::min(bottom, fine_.height); ++y)
        for (int32_t x = left; x < std::min(right, fine_.width); ++x) out[static_cast<size_t>(y) * fine_.width + x] = 1;
    return out;
}

// A first guess at the object in a box: the cells that look least like any outside.
Plane Prompt::stands_out(const Bits &allowed) const {
    const int32_t n = cells_.cells(), d = cells_.channels + 5;
    const Plane share = halved(Plane(allowed.begin(), allowed.end()));
    std::vector<int32_t> in, out;
    for (int32_t i = 0; i < n; ++i) {
        if (share[i] > 0.0f) in.push_back(i);
        if (share[i] < 0.5f) out.push_back(i);
    }
    if (out.empty()) return ellipse(allowed, fine_.height, fine_.width);
    const auto look = [&](int32_t i, int32_t c) {
        if (c < cells_.channels + 3) return cells_.looks[static_cast<size_t>(i) * cells_.inputs + c] * (c < cells_.channels ? 1.0f : kBoxColour);
        return kBoxPlace * cells_.places[static_cast<size_t>(i) * 2 + c - cells_.channels - 3];
    };
    Plane across(static_cast<size_t>(d) * out.size()), apart(out.size());
    for (int32_t c = 0; c < d; ++c)
        for (size_t j = 0; j < out.size(); ++j) across[c * out.size() + j] = look(out[j], c);
    const size_t nearest = std::min<size_t>(kBoxNearest, out.size());
    std::vector<double> novelty;
    std::array<double, 2> middle{}, low{1e9, 1e9}, high{-1e9, -1e9};
    for (const int32_t i : in) {
        std::fill(apart.begin(), apart.end(), 0.0f);
        for (int32_t c = 0; c < d; ++c) {
            const float value = look(i, c);
            const float *others = across.data() + c * out.size();
            for (size_t j = 0; j < out.size(); ++j) apart[j] += (value - others[j]) * (value - others[j]);
        }
        std::partial_sort(apart.begin(), apart.begin() + static_cast<int64_t>(nearest), apart.end());
        novelty.push_back(std::accumulate(apart.begin(), apart.begin() + static_cast<int64_t>(nearest), 0.0));
        for (size_t k = 0; k < 2; ++k) {
            const double place = cells_.places[static_cast<size_t>(i) * 2 + k];
            middle[k] += place / static_cast<double>(in.size());
            low[k] = std::min(low[k], place), high[k] = std::max(high[k], place);
        }
    }
    std::vector<size_t> order(in.size());
    std::iota(order.begin(), order.end(), size_t{0});
    // Not stable_sort: its buffer comes from one allocator and goes to another, as AddressSanitizer sees it.
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return std::pair(novelty[a], a) < std::pair(novelty[b], b); });
    std::vector<double> rank(in.size());
    for (size_t r = 0; r < order.size(); ++r) {
        rank[order[r]] = static_cast<double>(r) / static_cast<double>(in.size());
        for (size_t k = 0; k < 2; ++k) {
            const double from = (cells_.places[static_cast<size_t>(in[order[r]]) * 2 + k] - middle[k]) / ((high[k] - low[k]) / 2.0 + 1e-3);
            rank[order[r]] -= kBoxMiddle * from * from;
        }
    }
    std::vector<double> sorted(rank);
    std::sort(sorted.begin(), sorted.end());
    const double place = (1.0 - kBoxFilled) * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<size_t>(place);
    const double limit = sorted[below] + (place - static_cast<double>(below)) * (sorted[std::min(below + 1, sorted.size() - 1)] - sorted[below]);
    Plane soft(n, 0.0f);
    for (size_t i = 0; i < in.size(); ++i) soft[in[i]] = static_cast<float>(1.0 / (1.0 + std::exp((limit - rank[i]) / 0.1)));
    return resized(soft, cells_.height, cells_.width, 1, fine_.height, fine_.width);
}

// Means of the fine cells in each cell.
Plane Prompt::halved(const Plane &fine) const {
    Plane out(cells_.cells(), 0.0f);
    for (int32_t y = 0; y < fine_.height; ++y)
        for (int32_t x = 0; x < fine_.width; ++x)
            out[static_cast<size_t>(y / kFine) * cells_.width + x / kFine] += fine[static_cast<size_t>(y) * fine_.width + x] / (kFine * kFine);
    return out;
}

std::array<int32_t, 2> Prompt::at(const Click &click) const {
    const double x = (click.x + 0.5) / width_ * fine_.width / scale_x_, y = (click.y + 0.5) / height_ * fine_.height / scale_y_;
    return {std::min(static_cast<int32_t>(y), fine_.height - 1), std::min(static_cast<int32_t>(x), fine_.width - 1)};
}

Bits Prompt::coarse_spot(const Click &click) const {
    Bits out(cells_.cells(), 0);
    const auto [row, column] = at(click);
    mark_spot(out, cells_.height, cells_.width, row / kFine, column / kFine);
    return out;
}

// Take the newest click into account.
Prompt::State Prompt::click(const State &state, Clicks clicks) const {
    const Click &newest = clicks.back();
    const int32_t n = cells_.cells();
    const Plane coarse = halved(state.soft);
    const Bits spot = coarse_spot(newest);
    Bits before(n), domain(n), against(n, 0);
    for (int32_t i = 0; i < n; ++i) {
        before[i] = coarse[i] > 0.5f;
        domain[i] = (newest.positive ? before[i] == 0 : before[i] != 0) || spot[i] != 0;
    }
    for (const Click &other : clicks.first(clicks.size() - 1)) {
        if (other.positive == newest.positive) continue;
        const Bits there = coarse_spot(other);
        for (int32_t i = 0; i < n; ++i) against[i] = against[i] != 0 || (there[i] != 0 && spot[i] == 0);
    }
    if (!state.allowed.empty() && newest.positive) {
        const Plane allowed = halved(Plane(state.allowed.begin(), state.allowed.end()));
        for (int32_t i = 0; i < n; ++i)
            if (allowed[i] == 0.0f && spot[i] == 0) domain[i] = 0;
    }
    Plane stops(n, 0.0f);
    float limit = kLargest * static_cast<float>(n), balance = options_.balance;
    if (const int32_t area = count_of(before); area > 0) {
        // A cell more, as a click is known to half a cell.
        limit = std::min((newest.positive ? options_.grow : options_.shrink) * static_cast<float>(area), options_.reach * (1.0f + depth(state.soft, newest)));
        // A part by itself, which nobody clicked as the object, may go as a whole.
        if (!newest.positive) limit = std::max(limit, loose_part(before, spot, clicks));
        const Plane agrees = halved(state.score);
        for (int32_t i = 0; i < n; ++i)
            stops[i] = options_.agreement * std::clamp(newest.positive ? -agrees[i] : agrees[i], 0.0f, 1.0f) * cells_.mean_degree;
        balance = options_.later_balance;
    }
    const Bits chosen = region(spot, domain, against, stops, limit, balance);
    State next = state;
    for (int32_t y = 0; y < fine_.height; ++y)
        for (int32_t x = 0; x < fine_.width; ++x)
            if (chosen[static_cast<size_t>(y / kFine) * cells_.width + x / kFine] != 0)
                next.soft[static_cast<size_t>(y) * fine_.width + x] = newest.positive ? 1.0f : 0.0f;
    return refit(next, clicks);
}

// Squared distance of a click to what it may not change, in cells: of a positive click to the mask, of a negative one to what is not in it.
float Prompt::depth(const Plane &soft, const Click &click) const {
    const auto [row, column] = at(click);
    auto nearest = static_cast<int64_t>(fine_.cells()) * fine_.cells();
    for (int32_t y = 0; y < fine_.height; ++y)
        for (int32_t x = 0; x < fine_.width; ++x)
            if ((soft[static_cast<size_t>(y) * fine_.width + x] > 0.5f) == click.positive) {
                const int64_t down = y - row, right = x - column;
                nearest = std::min(nearest, down * down + right * right);
            }
    return static_cast<float>(nearest) / (kFine * kFine);
}

// The cells around a click that hang together best: walkers go in `domain`, stop at `against` and with the weights `stops`; at most `limit` cells,
// whose cut is divided by the area to the power of `balance`.
Bits Prompt::region(const Bits &spot, const Bits &domain, const Bits &against, const Plane &stops, float limit, float balance) const {
    const int32_t n = cells_.cells(), h = cells_.height, w = cells_.width;
    Plane weights(n), pulls(n), start(n);
    for (int32_t i = 0; i < n; ++i) {
        const bool border = i / w == 0 || i / w == h - 1 || i % w == 0 || i % w == w - 1;
        weights[i] = options_.leak * cells_.mean_degree + stops[i] + (spot[i] != 0 || against[i] != 0 ? kHard : 0.0f) +
                     (border && domain[i] != 0 ? options_.border : 0.0f) + (domain[i] == 0 ? 1.0f : 0.0f);
        start[i] = spot[i] != 0 ? 1.0f : 0.0f;
        pulls[i] = kHard * start[i];
    }
    Plane reach = cells_.walk(weights, pulls, start, 120, 1e-5f, &domain);
    Plane sorted;
    for (int32_t i = 0; i < n; ++i) {
        reach[i] = domain[i] != 0 ? std::max(reach[i], 0.0f) : 0.0f;
        if (domain[i] != 0) sorted.push_back(reach[i]);
    }
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const auto count = static_cast<int32_t>(sorted.size());
    const int32_t least = std::min(kSmallestUsual, std::max(kSmallest, n / 100));
    const double most = std::max(least + 1.0, std::min(count - 1.0, static_cast<double>(limit)));
    std::vector<int32_t> areas;
    for (int32_t k = 0; k < kLevels; ++k) {
        const auto area = static_cast<int32_t>(k == kLevels - 1 ? most : least * std::pow(most / least, k / (kLevels - 1.0)));
        if (area < count && (areas.empty() || area > areas.back())) areas.push_back(area);
    }
    Bits out(n, 0);
    if (areas.size() < 2) {
        for (int32_t i = 0; i < n; ++i) out[i] = spot[i] != 0 || reach[i] > 0.5f;
        return out;
    }
    Plane levels;
    for (const int32_t area : areas) levels.push_back(sorted[area]);
    std::vector<int32_t> order(n);  // levels that are above a cell's
    for (int32_t i = 0; i < n; ++i)
        order[i] = static_cast<int32_t>(std::partition_point(levels.begin(), levels.end(), [&](float level) { return level > reach[i]; }) - levels.begin());
    std::vector<double> cuts(levels.size() + 1, 0.0);
    for (size_t s = 0; s < 4; ++s)
        for (int32_t i = 0; i < n; ++i)
            if (const float edge = cells_.edges[s][cells_.pad + i]; edge != 0.0f) {
                const auto [low, high] = std::minmax(order[i], order[i + cells_.steps()[s]]);
                cuts[low] += edge;
                cuts[high] -= edge;
            }
    double cut = 0.0, best = 0.0;
    float level = levels[0];
    for (size_t k = 0; k < levels.size(); ++k) {
        cut += cuts[k];
        const double value = cut / std::pow(static_cast<double>(areas[k]), balance);
        if (k == 0 || value < best) best = value, level = levels[k];
    }
    for (int32_t i = 0; i < n; ++i) out[i] = spot[i] != 0 || reach[i] > level;
    return out;
}

// Cells of the connected part of a mask in which the newest click is; 0 if a positive click is in it.
float Prompt::loose_part(const Bits &mask, const Bits &spot, Clicks clicks) const {
    Bits both(mask);
    for (size_t i = 0; i < both.size(); ++i) both[i] = mask[i] != 0 || spot[i] != 0;
    const Parts parts = parts_of(both, cells_.height, cells_.width, true);
    const int32_t part = parts.of[std::find(spot.begin(), spot.end(), 1) - spot.begin()];
    for (const Click &other : clicks) {
        const auto [row, column] = at(other);
        if (other.positive && parts.of[static_cast<size_t>(row / kFine) * cells_.width + column / kFine] == part) return 0.0f;
    }
    return static_cast<float>(parts.sizes[part]);
}

// Learn what the mask looks like, and walk from the clicks with that as prior.
Prompt::State Prompt::refit(const State &state, Clicks clicks) const {
    Plane soft(state.soft);
    for (float &value : soft) value = std::clamp(value, 0.0f, 1.0f);
    const double total = sum_of(soft);
    if (total < 4.0 || total > static_cast<double>(soft.size()) - 4.0) return state;
    Plane weight(soft.size(), 0.0f), value(soft.size(), 0.0f);
    Bits near(soft.size());
    for (const Click &each : clicks) {
        std::fill(near.begin(), near.end(), uint8_t{0});
        const auto [row, column] = at(each);
        mark_spot(near, fine_.height, fine_.width, row, column);
        for (size_t i = 0; i < near.size(); ++i)
            if (near[i] != 0) weight[i] = kHard, value[i] = each.positive ? 1.0f : 0.0f;
    }
    State out{{}, classify(soft, clicks), state.allowed};
    Plane pulls(soft.size());
    const float keep = mask_.empty() ? options_.keep : 1.0f;  // of a mask that was given, only what is clicked is in doubt
    for (size_t i = 0; i < soft.size(); ++i) {
        if (!state.allowed.empty() && state.allowed[i] == 0) weight[i] = kHard, value[i] = 0.0f;
        const float likely = 1.0f / (1.0f + std::exp(-options_.gain * out.score[i]));
        const float wanted = keep * soft[i] + (1.0f - keep) * likely;
        pulls[i] = options_.prior * wanted + weight[i] * value[i];
        weight[i] += options_.prior;
    }
    out.soft = fine_.walk(weight, pulls, soft, 60, 2e-3f);
    for (float &each : out.soft) each = std::clamp(each, 0.0f, 1.0f);
    return out;
}

// A linear function of features, colour and position that is 1 in the mask and -1 outside, learnt from the cells, of the fine ones.
Plane Prompt::classify(const Plane &soft, Clicks clicks) const {
    const int32_t n = cells_.cells(), inputs = cells_.inputs, size = inputs + kPlaces;
    const Plane mask = halved(soft);
    const double total = std::max(sum_of(mask), 1e-6), rest = std::max(n - total, 1e-6);
    Placing placing{{}, {}, options_.place};
    for (size_t k = 0; k < 2; ++k) {
        for (int32_t i = 0; i < n; ++i) placing.middle[k] += mask[i] * cells_.places[static_cast<size_t>(i) * 2 + k] / total;
        double square = 0.0;
        for (int32_t i = 0; i < n; ++i) square += mask[i] * std::pow(cells_.places[static_cast<size_t>(i) * 2 + k] - placing.middle[k], 2) / total;
        placing.spread[k] = 2.0 * std::sqrt(square) + 0.02;
    }
    std::vector<double> weights(n), targets(n);
    for (int32_t i = 0; i < n; ++i) {
        weights[i] = 0.5 * mask[i] / total + 0.5 * (1.0 - mask[i]) / rest;
        targets[i] = 2.0 * mask[i] - 1.0;
        if (!clicks.empty()) weights[i] *= 1.0 - options_.click_share;
    }
    for (const bool positive : {true, false}) {
        Bits marked(n, 0);
        for (const Click &each : clicks)
            if (const auto [row, column] = at(each); each.positive == positive)
                mark_spot(marked, cells_.height, cells_.width, row / kFine, column / kFine);
        const int32_t count = count_of(marked);
        for (int32_t i = 0; i < n; ++i)
            if (marked[i] != 0) weights[i] += 0.5 * options_.click_share / count, targets[i] = positive ? 1.0 : -1.0;
    }
    std::vector<double> squares(static_cast<size_t>(size) * size, 0.0), moments(size, 0.0);
    Plane input(size), partial(squares.size(), 0.0f);  // sums of a row of cells in fp32, of rows in fp64
    for (int32_t i = 0; i < n; ++i) {
        std::copy_n(cells_.looks.data() + static_cast<size_t>(i) * inputs, inputs, input.data());
        placing.write(cells_.places.data() + static_cast<size_t>(i) * 2, input.data() + inputs);
        const auto weight = static_cast<float>(weights[i] * n);
        for (int32_t a = 0; a < size; ++a) {
            const float left = input[a] * weight;
            moments[a] += static_cast<double>(left) * targets[i];
            float *to = partial.data() + static_cast<size_t>(a) * size;
            for (int32_t b = 0; b < size; ++b) to[b] += left * input[b];
        }
        if (i % cells_.width == cells_.width - 1)
            for (size_t k = 0; k < squares.size(); ++k) squares[k] += std::exchange(partial[k], 0.0f);
    }
    double trace = 0.0;
    for (int32_t a = 0; a < size; ++a) trace += squares[static_cast<size_t>(a) * size + a];
    for (int32_t a = 0; a < size; ++a) squares[static_cast<size_t>(a) * size + a] += options_.ridge * trace / size;
    const std::vector<double> slope = solved(std::move(squares), std::move(moments));
    Plane out(fine_.cells());
    for (int32_t i = 0; i < fine_.cells(); ++i) {
        std::array<float, kPlaces> places{};
        placing.write(fine_.places.data() + static_cast<size_t>(i) * 2, places.data());
        double score = 0.0;
        for (int32_t c = 0; c < inputs; ++c) score += slope[c] * fine_.looks[static_cast<size_t>(i) * inputs + c];
        for (int32_t c = 0; c < kPlaces; ++c) score += slope[inputs + c] * places[static_cast<size_t>(c)];
        out[i] = static_cast<float>(score);
    }
    return out;
}

// The mask of the frame at half its size, its outline on the edges of the picture.
Plane Prompt::follow_edges(const Plane &soft) {
    const int32_t rows = guide_.height(), columns = guide_.width();
    const auto w = std::max(columns, static_cast<int32_t>(std::nearbyint(columns * scale_x_)));
    const auto h = std::max(rows, static_cast<int32_t>(std::nearbyint(rows * scale_y_)));
    const Plane large = resized(soft, fine_.height, fine_.width, 1, h, w);
    Plane rest(static_cast<size_t>(rows) * columns);  // 1 - p: the guide filters the first channel as background
    for (int32_t y = 0; y < rows; ++y)
        for (int32_t x = 0; x < columns; ++x)
            rest[static_cast<size_t>(y) * columns + x] = 0.5f - std::clamp(4.0f * (large[static_cast<size_t>(y) * w + x] - 0.5f), -0.5f, 0.5f);
    constexpr std::array<int32_t, 1> kFirst{0};
    const float *filtered = guide_.run({rows, columns, rest.data(), 1, kFirst, Alignment::half_pixel}, pool_);
    for (size_t i = 0; i < rest.size(); ++i) rest[i] = 1.0f - filtered[i];
    return rest;
}

// The soft mask as a mask of the frame, without small parts and holes in which nobody clicked.
void Prompt::finish(const State &state, Clicks clicks, uint8_t *out) {
    const Plane soft = resized(follow_edges(state.soft), guide_.height(), guide_.width(), 1, height_, width_);
    Bits mask(soft.size());
    for (size_t i = 0; i < soft.size(); ++i) mask[i] = soft[i] > 0.5f;
    const auto pixel = [&](const Click &each) {
        return static_cast<size_t>(std::min(static_cast<int32_t>(each.y), height_ - 1)) * width_ + std::min(static_cast<int32_t>(each.x), width_ - 1);
    };
    const double area = count_of(mask);
    for (const bool positive : {true, false}) {
        Bits side(mask);
        for (uint8_t &each : side) each = (each != 0) == positive;
        const Parts parts = parts_of(side, height_, width_, positive);
        if (parts.sizes.size() < 2) continue;
        const auto largest = static_cast<double>(*std::max_element(parts.sizes.begin(), parts.sizes.end()));
        Bits kept(parts.sizes.size());
        for (size_t k = 1; k < kept.size(); ++k) kept[k] = static_cast<double>(parts.sizes[k]) >= (positive ? options_.crumbs * largest : options_.holes * area);
        if (!positive)  // what touches the border of the frame is no hole
            for (int32_t y = 0; y < height_; ++y)
                for (int32_t x = 0; x < width_; x += y == 0 || y == height_ - 1 || width_ == 1 ? 1 : width_ - 1) kept[parts.of[static_cast<size_t>(y) * width_ + x]] = 1;
        for (const Click &each : clicks)
            if (each.positive == positive) kept[parts.of[pixel(each)]] = 1;
        kept[0] = 0;
        for (size_t i = 0; i < mask.size(); ++i) mask[i] = (kept[parts.of[i]] != 0) == positive;
    }
    for (const Click &each : clicks) mask[pixel(each)] = each.positive;
    std::copy(mask.begin(), mask.end(), out);
}

}  // namespace vosrt
