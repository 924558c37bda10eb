#include "search.hpp"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "basis.hpp"
#include "error.hpp"

namespace vosrt {
namespace {

// One job in so many of one frame in so many is bounded even where bounds do not pay, to see whether they do again.
constexpr int32_t kProbe = 32, kProbeFrames = 8;
constexpr int64_t kSettle = 16;  // frames between changes of the heads' length: all heads are made again
constexpr int64_t kFirst = 4;    // frames before the first verdict: those have few neighbours to seed limits with, and few heads

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
    return true;
}

void Search::make_heads(std::byte *keys, int32_t cells, int32_t from, int32_t count, std::byte *workspace) const {
    kernel_.make_heads(keys + from * kernel_.row_bytes(channels_), count, channels_, axes_.data(), head_,
                       keys + heads_at(cells) + from * kernel_.head_row_bytes(head_), workspace);
}

SearchCounts Search::total() const {
    SearchCounts sum;
    for (const SearchCounts &each : counts_) sum += each;
    return sum;
}

// Of a bounded search, in full products per key: that of bounds, and that of survivors. A pair takes about a sixth of the time of a patch.
Search::Cost Search::cost(const SearchCounts &counts) const {
    const auto keys = static_cast<double>(std::max<int64_t>(counts.screened, 1));
    const double first = std::min(head_, kernel_.head_multiple), compare = kernel_.compare_channels;
    const double rest = head_ > first ? head_ - first + compare : 0.0;
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
