#include "memory.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "error.hpp"

namespace vosrt {

Memory::Memory(const MemoryOptions &options)
    : options_(options), kernel_(*match_kernel(options.isa)), pool_(options.threads) {
    channel_.fill(-1);
    build_window();
    mean_.resize(options_.channels);
    for (int32_t i = 0; i <= options_.context; ++i) slots_.push_back(make_slot(capacity_));

    patch_columns_ = (options_.width + kernel_.patch_width - 1) / kernel_.patch_width;
    patch_rows_ = (options_.height + kernel_.patch_height - 1) / kernel_.patch_height;
    // Patches of a group share keys in cache; smaller groups where threads would run short of work.
    constexpr int32_t kGroupsPerThread = 6;
    while (group_rows_ * group_columns_ > 1 &&
           patch_columns_ * patch_rows_ < kGroupsPerThread * pool_.size() * group_columns_ * group_rows_)
        (group_rows_ >= group_columns_ ? group_rows_ : group_columns_) /= 2;
    workspace_.resize(pool_.size());
    sums_.assign(pool_.size(), std::vector<float>(capacity_));
    recent_keys_.reserve(options_.context);
    update_order();
}

void Memory::build_window() {
    const auto extent = static_cast<double>(std::max(options_.height, options_.width));
    const double radius = std::min(static_cast<double>(options_.radius), extent);
    const bool circle = options_.window == VOSRT_WINDOW_CIRCLE;
    const auto inside = [&](int64_t dx, int64_t dy) {
        const auto x = static_cast<double>(dx), y = static_cast<double>(dy);
        return circle ? x * x + y * y < static_cast<double>(options_.radius) * options_.radius : std::max(x, y) <= radius;
    };
    int32_t reach = static_cast<int32_t>(radius);
    while (reach > 0 && !inside(0, reach)) --reach;
    half_width_.resize(reach + 1);
    for (int32_t dy = 0; dy <= reach; ++dy) {
        int32_t dx = reach;
        while (dx >= 0 && !inside(dx, dy)) --dx;
        half_width_[dy] = dx;
    }
    const int32_t columns = kernel_.patch_width + 2 * reach, rows = kernel_.patch_height + 2 * reach;
    window_.assign(static_cast<size_t>(columns) * rows, 0);
    for (int32_t row = 0; row < rows; ++row)
        for (int32_t column = 0; column < columns; ++column)
            for (int32_t lane = 0; lane < kernel_.patch_width * kernel_.patch_height; ++lane) {
                const int32_t dy = std::abs(row - reach - lane / kernel_.patch_width);
                const int32_t dx = std::abs(column - reach - lane % kernel_.patch_width);
                if (dy <= reach && dx <= half_width_[dy]) window_[row * columns + column] |= 1u << lane;
            }
}

Memory::Slot Memory::make_slot(size_t capacity) const {
    Slot slot;
    slot.keys.reserve(kernel_.row_bytes(options_.channels) * (static_cast<size_t>(cells()) + kernel_.padding_rows));
    slot.soft.assign(cells() * capacity, 0.0f);
    return slot;
}

int64_t Memory::bytes() const {
    const auto of = [](const Slot &slot) { return slot.keys.bytes() + slot.soft.capacity() * sizeof(float); };
    size_t total = candidates_.capacity() * sizeof(Candidate) + window_.size() * sizeof(uint32_t);
    for (const Slot &slot : slots_) total += of(slot);
    for (const Reference &reference : references_) total += of(reference.slot);
    for (const AlignedBuffer &buffer : workspace_) total += buffer.bytes();
    return static_cast<int64_t>(total);
}

int32_t Memory::references() const {
    return static_cast<int32_t>(std::count_if(references_.begin(), references_.end(),
                                              [](const Reference &reference) { return !reference.ids.empty(); }));
}

void Memory::require_frame(const char *what) const {
    if (frames_ == 0) invalid(std::string(what) + " needs a frame; push one first");
}

// The mean is fixed by the first frame: keys of all frames must be relative to the same one.
void Memory::set_mean(const float *embedding) {
    const auto channels = static_cast<size_t>(options_.channels);
    std::vector<double> sum(channels, 0.0);
    for (int32_t cell = 0; cell < cells(); ++cell)
        for (size_t c = 0; c < channels; ++c) sum[c] += embedding[cell * channels + c];
    for (size_t c = 0; c < channels; ++c) {
        const auto mean = static_cast<float>(sum[c] / cells());
        mean_[c] = std::isfinite(mean) ? mean : 0.0f;
    }
    set_mean_square();
}

void Memory::set_mean_square() {
    double square = 0.0;
    for (const float mean : mean_) square += static_cast<double>(mean) * mean;
    mean_square_ = static_cast<float>(square);
}

void Memory::push(const float *embedding) {
    if (frames_ == 0) set_mean(embedding);
    ++frames_;
    Slot &slot = newest();
    constexpr int32_t kRun = 256;
    const size_t row = kernel_.row_bytes(options_.channels);
    pool_.run((cells() + kRun - 1) / kRun, [&](int32_t job, int32_t) {
        const int32_t from = job * kRun, count = std::min(kRun, cells() - from);
        kernel_.store(embedding + static_cast<size_t>(from) * options_.channels, count, options_.channels, mean_.data(),
                      slot.keys.data() + from * row);
    });
    if (references_.empty()) {
        matched_.clear();
        std::fill(slot.soft.begin(), slot.soft.end(), 0.0f);
        for (int32_t cell = 0; cell < cells(); ++cell) slot.soft[cell * capacity_] = 1.0f;
        return;
    }
    match_newest();
}

void Memory::match_newest() {
    const int64_t now = frames_ - 1;
    const auto count = static_cast<int32_t>(references_.size());
    matched_.clear();
    match_references_.clear();
    // The youngest reference needs the fewest recent frames: matching goes from youngest to oldest.
    for (int32_t i = count - 1; i >= 0; --i) {
        const Reference &reference = references_[i];
        const auto recent = static_cast<int32_t>(std::min<int64_t>(options_.context, now - reference.frame));
        const int32_t copies = options_.pad_context ? options_.context - recent : 0;
        matched_.push_back({reference.frame, recent, copies});
        match_references_.push_back({reference.slot.keys.data(), recent, copies});
    }
    recent_keys_.clear();
    for (int32_t age = 1; age <= matched_.back().recent; ++age) recent_keys_.push_back(slot_of(now - age).keys.data());

    const MatchTask task{.height = options_.height,
                         .width = options_.width,
                         .channels = options_.channels,
                         .query = newest().keys.data(),
                         .recent = recent_keys_.data(),
                         .context = options_.context,
                         .references = match_references_.data(),
                         .reference_count = count,
                         .global_reference = options_.global_reference,
                         .reach = static_cast<int32_t>(half_width_.size()) - 1,
                         .half_width = half_width_.data(),
                         .window = window_.data(),
                         .top_k = options_.top_k,
                         .mean_square = mean_square_,
                         .result = candidates_.data()};
    Slot &slot = newest();
    const int32_t across = (patch_columns_ + group_columns_ - 1) / group_columns_;
    const int32_t down = (patch_rows_ + group_rows_ - 1) / group_rows_;
    pool_.run(across * down, [&](int32_t job, int32_t worker) {
        PatchGroup group{job % across * group_columns_, job / across * group_rows_, group_columns_, group_rows_};
        group.columns = std::min(group.columns, patch_columns_ - group.left);
        group.rows = std::min(group.rows, patch_rows_ - group.top);
        kernel_.match(task, group, workspace_[worker].data());
        const int32_t bottom = std::min((group.top + group.rows) * kernel_.patch_height, options_.height);
        const int32_t right = std::min((group.left + group.columns) * kernel_.patch_width, options_.width);
        for (int32_t y = group.top * kernel_.patch_height; y < bottom; ++y)
            for (int32_t x = group.left * kernel_.patch_width; x < right; ++x) {
                const int32_t cell = y * options_.width + x;
                propagate(cell, sums_[worker].data(), slot.soft.data() + cell * capacity_);
            }
    });
}

// Every reference's context gives the channels annotated there, the first one background too. The first reference may
// show as background what was marked only later, so background yields to later objects.
void Memory::propagate(int32_t cell, float *sums, float *soft) const {
    std::fill_n(soft, capacity_, 0.0f);
    float later = 0.0f;
    const auto first = static_cast<int32_t>(references_.size()) - 1;
    for (int32_t r = 0; r <= first; ++r) {
        read_out(r, cell, sums);
        for (const uint8_t id : references_[first - r].ids) {
            soft[channel_[id]] = sums[channel_[id]];
            if (r < first) later += sums[channel_[id]];
        }
    }
    soft[0] = sums[0];
    if (options_.yield_background) soft[0] *= std::max(0.0f, 1.0f - later);
}

// Softmax of the kept similarities, then the weighted sum of their soft masks (Araslanov et al. 2021, eq. 1 and 2 of
// appendix C). `sums` receives every channel; a context contributes only those annotated in its reference.
void Memory::read_out(int32_t reference, int32_t cell, float *sums) const {
    const Candidate *list =
        candidates_.data() + (static_cast<size_t>(reference) * cells() + cell) * options_.top_k;
    const Matched &context = matched_[reference];
    const Slot &slot = references_[references_.size() - 1 - reference].slot;
    std::fill_n(sums, capacity_, 0.0f);
    float weights[64];
    float total = 0.0f;
    int32_t count = 0;
    for (; count < options_.top_k && list[count].cell >= 0; ++count) {
        weights[count] = std::exp((list[count].similarity - list[0].similarity) / options_.temperature);
        total += weights[count];
    }
    const int64_t now = frames_ - 1;
    for (int32_t i = 0; i < count; ++i) {
        const int32_t position = list[i].position;
        const Slot &from = position <= context.copies ? slot : slot_of(now - (options_.context + 1 - position));
        const float *soft = from.soft.data() + list[i].cell * capacity_;
        const float weight = weights[i] / total;
        for (size_t c = 0; c < capacity_; ++c) sums[c] += weight * soft[c];
    }
}

void Memory::reserve_work(size_t references) {
    candidates_.resize(std::max(candidates_.size(), references * cells() * options_.top_k));
    matched_.reserve(references);
    match_references_.reserve(references);
    for (AlignedBuffer &buffer : workspace_)
        buffer.reserve(kernel_.workspace_bytes(options_.channels, options_.top_k, static_cast<int32_t>(references),
                                               group_columns_ * group_rows_));
}

void Memory::grow_channels(size_t objects) {
    size_t capacity = capacity_;
    while (capacity < objects + 1) capacity *= 2;
    if (capacity == capacity_) return;
    // Everything is allocated before anything changes.
    std::vector<std::vector<float>> wider;
    for_each_slot([&](Slot &slot) {
        std::vector<float> soft(cells() * capacity, 0.0f);
        for (int32_t cell = 0; cell < cells(); ++cell)
            std::copy_n(slot.soft.data() + cell * capacity_, capacity_, soft.data() + cell * capacity);
        wider.push_back(std::move(soft));
    });
    std::vector<std::vector<float>> sums(sums_.size(), std::vector<float>(capacity));
    size_t i = 0;
    for_each_slot([&](Slot &slot) { slot.soft = std::move(wider[i++]); });
    sums_ = std::move(sums);
    capacity_ = capacity;
}

template <class Body>
void Memory::for_each_slot(const Body &body) {
    for (Slot &slot : slots_) body(slot);
    for (Reference &reference : references_) body(reference.slot);
}

void Memory::update_order() {
    order_channels_.assign(1, 0);
    order_ids_.assign(1, 0);
    for (int32_t id = 1; id < 256; ++id)
        if (channel_[id] >= 0) {
            order_channels_.push_back(channel_[id]);
            order_ids_.push_back(static_cast<uint8_t>(id));
        }
}

void Memory::annotate(const uint8_t *mask, int32_t height, int32_t width, int64_t stride) {
    require_frame("annotating");
    const GridMask grid = resize_mask(mask, height, width, stride, options_.height, options_.width, options_.alignment);
    const int64_t now = frames_ - 1;
    const size_t count = grid.ids.size();

    std::array<int32_t, 256> channel = channel_;
    std::array<bool, 257> used{};
    size_t objects = 0;
    for (int32_t id = 1; id < 256; ++id)
        if (channel[id] >= 0) {
            used[channel[id]] = true;
            ++objects;
        }
    for (const uint8_t id : grid.ids)
        if (channel[id] < 0) {
            int32_t free = 1;
            while (used[free]) ++free;
            used[free] = true;
            channel[id] = free;
            ++objects;
        }

    // Whatever can run out of memory comes first, so that a failure leaves everything as it was.
    grow_channels(objects);
    const bool same_frame = !references_.empty() && references_.back().frame == now;
    references_.reserve(references_.size() + 1);
    reserve_work(references_.size() + (same_frame ? 0 : 1));
    order_channels_.reserve(257);
    order_ids_.reserve(257);
    Reference fresh{now, {}, {}};
    fresh.ids.reserve(256);
    if (!same_frame) fresh.slot = make_slot(capacity_);

    Slot &slot = newest();
    std::array<bool, 256> is_new{};
    for (const uint8_t id : grid.ids) is_new[channel[id]] = true;
    for (int32_t cell = 0; cell < cells(); ++cell) {
        const float *added = grid.soft.data() + cell * count;
        float *soft = slot.soft.data() + cell * capacity_;
        // Rounding may carry the sum just past 1; soft masks are never negative.
        const float kept = std::max(0.0f, 1.0f - std::accumulate(added, added + count, 0.0f));
        for (const uint8_t id : grid.ids)
            if (channel_[id] >= 0) soft[0] += soft[channel_[id]];
        for (size_t c = 0; c < capacity_; ++c)
            if (!is_new[c]) soft[c] *= kept;
        for (size_t i = 0; i < count; ++i) soft[channel[grid.ids[i]]] = added[i];
    }

    if (!same_frame) {
        std::memcpy(fresh.slot.keys.data(), slot.keys.data(), slot.keys.bytes());
        references_.push_back(std::move(fresh));
    }
    Reference &reference = references_.back();
    std::copy(slot.soft.begin(), slot.soft.end(), reference.slot.soft.begin());
    for (const uint8_t id : grid.ids) {
        for (Reference &other : references_) std::erase(other.ids, id);
        reference.ids.push_back(id);
    }
    channel_ = channel;
    references_.erase(std::remove_if(references_.begin() + 1, references_.end(),
                                     [](const Reference &other) { return other.ids.empty(); }),
                      references_.end());
    update_order();
}

void Memory::remove(int32_t object_id) {
    if (object_id < 1 || object_id > 255 || channel_[object_id] < 0)
        invalid("object " + std::to_string(object_id) + " is not tracked; nothing to remove");
    const int32_t channel = channel_[object_id];
    for_each_slot([&](Slot &slot) {
        for (int32_t cell = 0; cell < cells(); ++cell) {
            float *soft = slot.soft.data() + cell * capacity_;
            soft[0] += soft[channel];
            soft[channel] = 0.0f;
        }
    });
    channel_[object_id] = -1;
    for (Reference &reference : references_) std::erase(reference.ids, static_cast<uint8_t>(object_id));
    references_.erase(std::remove_if(references_.begin() + 1, references_.end(),
                                     [](const Reference &other) { return other.ids.empty(); }),
                      references_.end());
    update_order();
}

void Memory::labels(int32_t height, int32_t width, uint8_t *labels, float *confidence) {
    require_frame("labelling");
    rows_.set(options_.height, height, options_.alignment);
    columns_.set(options_.width, width, options_.alignment);
    const LabelTask task{.height = options_.height,
                         .width = options_.width,
                         .soft = newest().soft.data(),
                         .stride = static_cast<int64_t>(capacity_),
                         .channels = order_channels_.data(),
                         .ids = order_ids_.data(),
                         .count = static_cast<int32_t>(order_ids_.size()),
                         .out_height = height,
                         .out_width = width,
                         .rows = &rows_,
                         .columns = &columns_,
                         .labels = labels,
                         .confidence = confidence};
    pool_.run(options_.height, [&](int32_t row, int32_t) { label_rows(task, row); });
}

void Memory::soft_masks(float *masks) const {
    require_frame("reading soft masks");
    const size_t count = order_channels_.size();
    const Slot &slot = newest();
    for (int32_t cell = 0; cell < cells(); ++cell)
        for (size_t i = 0; i < count; ++i) masks[cell * count + i] = slot.soft[cell * capacity_ + order_channels_[i]];
}

void Memory::set_soft_masks(const float *masks) {
    require_frame("setting soft masks");
    const size_t count = order_channels_.size();
    for (size_t i = 0; i < cells() * count; ++i)
        if (!(masks[i] >= 0.0f && std::isfinite(masks[i])))
            invalid("a soft mask holds " + std::to_string(masks[i]) + "; expected finite values of at least 0");
    Slot &slot = newest();
    for (int32_t cell = 0; cell < cells(); ++cell)
        for (size_t i = 0; i < count; ++i) slot.soft[cell * capacity_ + order_channels_[i]] = masks[cell * count + i];
}

void Memory::top_k(float *similarity, int32_t *frame, int32_t *cell) const {
    const int64_t now = frames_ - 1;
    const auto count = static_cast<size_t>(cells()) * options_.top_k;
    // References were matched youngest first; the caller sees them oldest first.
    for (size_t r = 0; r < matched_.size(); ++r) {
        const size_t source = matched_.size() - 1 - r;
        const Matched &context = matched_[source];
        for (size_t i = 0; i < count; ++i) {
            const Candidate &candidate = candidates_[source * count + i];
            const size_t at = r * count + i;
            similarity[at] = candidate.similarity;
            cell[at] = candidate.cell;
            frame[at] = candidate.cell < 0 ? -1
                        : candidate.position <= context.copies
                            ? static_cast<int32_t>(context.frame)
                            : static_cast<int32_t>(now - (options_.context + 1 - candidate.position));
        }
    }
}

}  // namespace vosrt
