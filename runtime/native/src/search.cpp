#include "search.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numbers>
#include <numeric>
#include <string>

#include "basis.hpp"
#include "error.hpp"

namespace vosrt {
namespace {

// One job in so many of one frame in so many is bounded even where bounds do not pay, to see whether they do again.
constexpr int32_t kProbe = 32, kProbeFrames = 8;
constexpr int64_t kSettle = 16;         // frames between changes of the heads' length: all heads are made again
constexpr double kByteChannels = 16.0;  // a head in 8-bit integers takes as long as so many channels of a product
constexpr int64_t kFirst = 4;           // frames before the first verdict: those have few neighbours to seed limits with, and few heads

}  // namespace

SearchMode search_mode() {
    const char *forced = std::getenv("VOSRT_MATCH");
    const std::string name = forced == nullptr || *forced == '\0' ? "auto" : forced;
    if (name != "auto" && name != "full" && name != "bounded")
        invalid("VOSRT_MATCH is '" + name + "'; expected auto, full or bounded");
    return name == "full" ? SearchMode::full : name == "bounded" ? SearchMode::bounded
                                                                 : SearchMode::automatic;
}

Search::Search(const MatchKernel &kernel, int32_t channels, int32_t threads)
    : kernel_(kernel), channels_(channels), mode_(search_mode()), counts_(threads) {
    if (mode_ == SearchMode::full || !can_bound(channels)) return;
    // Heads take an eighth of the memory of keys at most, unless the path has no shorter ones.
    for (const int32_t head : {16, 32, 64, 128})
        if (head % kernel.head_multiple == 0 && (most_ == 0 || head <= channels / 8)) most_ = head;
    head_ = std::min(most_, std::max(32, kernel.head_multiple));
    changed_ = kFirst - kSettle;
}

bool Search::learn(const std::byte *keys, int32_t cells) {
    if (most_ == 0 || ready()) return false;
    const int32_t step = sample_step(cells);
    std::vector<float> samples(static_cast<size_t>((cells + step - 1) / step) * channels_);
    float *out = samples.data();
    for (int32_t cell = 0; cell < cells; cell += step, out += channels_)
        kernel_.load(keys + cell * kernel_.row_bytes(channels_), channels_, out);
    axes_ = principal_axes(samples, channels_, most_ - 1, axis_stride(channels_));
    if (kernel_.byte_row_bytes != 0) scale_ = byte_scale(samples);
    return true;
}

namespace {

// Turns orthonormal axes within their span (Hartley's transform, which is orthogonal), so that what one of them has much of is spread
// over all: steps of 8-bit integers are as long as the largest coordinate asks for.
void spread(float *axes, int32_t count, int32_t stride) {
    std::vector<float> turned(static_cast<size_t>(count) * stride, 0.0f);
    for (int32_t i = 0; i < count; ++i)
        for (int32_t j = 0; j < count; ++j) {
            const double angle = 2.0 * std::numbers::pi * (i * j % count) / count;
            const auto share = static_cast<float>((std::cos(angle) + std::sin(angle)) / std::sqrt(count));
            for (int32_t c = 0; c < stride; ++c) turned[static_cast<size_t>(i) * stride + c] += share * axes[static_cast<size_t>(j) * stride + c];
        }
    std::copy(turned.begin(), turned.end(), axes);
}

}  // namespace

// Steps that reach what coordinates of the sampled keys have, and most of what short heads leave. Axes that features do not span are zero, and leave nothing to spread.
ByteScale Search::byte_scale(const std::vector<float> &samples) {
    constexpr int32_t kBlock = 15, kAxes = 2 * kBlock;
    constexpr float kSteps = 126.0f, kShareOfRest = 0.8f, kMostRoom = 1.3f;
    const int32_t stride = axis_stride(channels_);
    for (int32_t i = 0; i < kAxes; ++i)
        if (std::all_of(axes_.data() + i * stride, axes_.data() + (i + 1) * stride, [](float value) { return value == 0.0f; })) return {};
    spread(axes_.data(), kBlock, stride);
    spread(axes_.data() + kBlock * stride, kBlock, stride);
    float reach = 0.0f, longest = 0.0f, most = 0.0f;
    for (size_t at = 0; at + channels_ <= samples.size(); at += channels_) {
        const float *key = samples.data() + at;
        const float square = std::inner_product(key, key + channels_, key, 0.0f);
        if (!std::isfinite(square)) continue;
        float largest = 0.0f, along = 0.0f;
        for (int32_t i = 0; i < kAxes; ++i) {
            const float coordinate = std::inner_product(key, key + channels_, axes_.data() + i * stride, 0.0f);
            largest = std::max(largest, std::fabs(coordinate));
            along += coordinate * coordinate;
            if (i + 1 == kBlock) largest = std::max(largest, kShareOfRest * std::sqrt(std::max(square - along, 0.0f)));
        }
        reach = std::max(reach, largest);
        longest = std::max(longest, std::sqrt(along));
        most = std::max(most, kMostRoom * std::sqrt(square));
    }
    // Beyond, squares of steps are no normal numbers.
    if (!(reach > 1e-10f && reach < 1e10f)) return {};
    const float step = reach / kSteps;
    return {step, std::sqrt(kAxes / 12.0f) * step / longest, most};
}

void Search::make_heads(std::byte *keys, int32_t cells, int32_t from, int32_t count, std::byte *workspace) const {
    kernel_.make_heads({keys + from * kernel_.row_bytes(channels_), count, channels_, axes_.data(), head_,
                        keys + heads_at(cells) + from * kernel_.head_row_bytes(head_),
                        keys + bytes_at(cells) + from * kernel_.byte_row_bytes, scale_},
                       workspace);
}

SearchCounts Search::total() const {
    SearchCounts sum;
    for (const SearchCounts &each : counts_) sum += each;
    return sum;
}

// Of a bounded search, in full products per key: that of bounds, and that of survivors. A pair takes about a sixth of the time of a patch.
Search::Cost Search::cost(const SearchCounts &counts) const {
    const auto keys = static_cast<double>(std::max<int64_t>(counts.screened, 1));
    const double compare = kernel_.compare_channels;
    double first = std::min(head_, kernel_.head_multiple), rest = head_ > first ? head_ - first + compare : 0.0;
    if (scale_.step != 0.0f) first = kByteChannels, rest = head_;
    return {(first + compare + rest * static_cast<double>(counts.whole) / keys) / (channels_ + compare),
            (kernel_.survivor_cost * static_cast<double>(counts.products) + static_cast<double>(counts.pairs) / 6) / keys};
}

bool Search::adapt() {
    const SearchCounts last = total();
    ++frames_;
    if (last.screened == 0 || frames_ <= kFirst) return false;
    // Two limits, so that it does not change to and fro.
    const Cost spent = cost(last);
    pays_ = spent.total() < (pays_ ? 0.9 : 0.7);
    if ((!pays_ && mode_ != SearchMode::bounded) || frames_ - changed_ < kSettle) return false;
    const double head = static_cast<double>(head_) / channels_;
    int32_t other = head_;
    if (spent.survivors > 2 * head && 2 * head_ <= most_) other = 2 * head_;
    if (spent.survivors < head / 8 && head_ / 2 >= std::max(16, kernel_.head_multiple)) other = head_ / 2;
    if (other == head_) return false;
    head_ = other;
    changed_ = frames_;
    return true;
}

bool Search::bounds(int32_t job, int32_t worker) const {
    if (!ready()) return false;
    if (mode_ == SearchMode::bounded || (frames_ % kProbeFrames == 0 && job % kProbe == frames_ / kProbeFrames % kProbe)) return true;
    if (!pays_) return false;
    // A video may have changed since the last frame: a few jobs show.
    constexpr int64_t kEnough = 1 << 16;
    const SearchCounts &so_far = counts_[worker];
    return so_far.screened < kEnough || cost(so_far).total() < 1.0;
}

float Search::survivors() const {
    const SearchCounts last = total();
    return last.screened == 0 ? 1.0f : static_cast<float>(static_cast<double>(last.products) / static_cast<double>(last.screened));
}

}  // namespace vosrt
