#include "refiner.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "error.hpp"
#include "values.hpp"

namespace vosrt {
namespace {

// Where one output pixel lies between four input pixels: bilinear, centres at half-integers, edges repeated.
struct Tap {
    ptrdiff_t a, b, below_a, below_b;
    float wx, wy;

    float of(const float *plane) const {
        return (1 - wy) * ((1 - wx) * plane[a] + wx * plane[b]) + wy * ((1 - wx) * plane[below_a] + wx * plane[below_b]);
    }
};

struct Taps {
    const SampleAxis &rows, &columns;
    ptrdiff_t row_step, step;  // between inputs

    Tap at(int32_t y, int32_t x) const {
        const ptrdiff_t above = rows.first[y] * row_step, below = rows.second[y] * row_step;
        const ptrdiff_t left = columns.first[x] * step, right = columns.second[x] * step;
        return {above + left, above + right, below + left, below + right, columns.weight[x], rows.weight[y]};
    }
};

// From inputs that lie `step` elements apart, rows `row_step`.
Taps taps(Size in, Size out, ptrdiff_t row_step, ptrdiff_t step, SampleAxis &rows, SampleAxis &columns) {
    rows.set(in.height, out.height, Alignment::half_pixel);
    columns.set(in.width, out.width, Alignment::half_pixel);
    return {rows, columns, row_step, step};
}

// Merges logits of objects that know nothing of each other (Oh et al. 2019, equation 5): the background's probability is the
// product of 1 - p; all are clamped and weighted by their odds.
void aggregate(const float *logits, size_t objects, float *soft) {
    float background = 1.0f, total = 0.0f;
    for (size_t i = 0; i < objects; ++i) {
        const float p = 1.0f / (1.0f + std::exp(-std::clamp(logits[i], -80.0f, 80.0f)));
        background *= 1.0f - p;
        soft[1 + i] = p;
    }
    soft[0] = background;
    for (size_t i = 0; i <= objects; ++i) {
        const float p = std::clamp(soft[i], 1e-7f, 1.0f - 1e-7f);
        soft[i] = p / (1.0f - p);
        total += soft[i];
    }
    for (size_t i = 0; i <= objects; ++i) soft[i] /= total;
}

// Logits of a residual decoder multiply what was propagated; less than 0.01 counts as 0.01, so that it can be overruled.
void correct(const float *logits, size_t objects, const float *propagated, float *soft) {
    float largest = 0.0f, total = 0.0f;
    for (size_t i = 0; i < objects; ++i) largest = std::max(largest, logits[i]);
    for (size_t i = 0; i <= objects; ++i) {
        soft[i] = std::max(propagated[i], 0.01f) * std::exp((i == 0 ? 0.0f : logits[i - 1]) - largest);
        total += soft[i];
    }
    for (size_t i = 0; i <= objects; ++i) soft[i] /= total;
}

}  // namespace

std::vector<uint8_t> draw_marks(const Picture &mask, std::span<const uint8_t> ids, const SoftPixels &soft, ThreadPool &pool) {
    const auto is_marked = ids_in(mask);
    std::vector<uint8_t> marked;
    std::array<size_t, 256> channel{};
    for (size_t i = 0; i < ids.size(); ++i) channel[ids[i]] = 1 + i;
    for (int32_t id = 1; id < 256; ++id) {
        if (!is_marked[id]) continue;
        if (channel[id] == 0) invalid("the mask marks object " + std::to_string(id) + ", which is not tracked; annotate it first");
        marked.push_back(static_cast<uint8_t>(id));
    }
    // Marked objects are shown as they were drawn, in the resolution of the frame, and what was there before yields to them.
    SampleAxis rows, columns;
    const Taps from = taps({mask.height, mask.width}, soft.size, mask.stride, 1, rows, columns);
    pool.run(soft.size.height, [&](int32_t y, int32_t) {
        float drawn[256];
        for (int32_t x = 0; x < soft.size.width; ++x) {
            const Tap tap = from.at(y, x);
            const uint8_t corners[4] = {mask.data[tap.a], mask.data[tap.b], mask.data[tap.below_a], mask.data[tap.below_b]};
            float total = 0.0f;
            for (const uint8_t id : marked) {
                const auto is = [id](uint8_t corner) { return corner == id ? 1.0f : 0.0f; };
                const float square[4] = {is(corners[0]), is(corners[1]), is(corners[2]), is(corners[3])};
                drawn[id] = Tap{0, 1, 2, 3, tap.wx, tap.wy}.of(square);
                total += drawn[id];
            }
            float *pixel = soft.values + (static_cast<ptrdiff_t>(y) * soft.size.width + x) * soft.step;
            const float kept = std::max(0.0f, 1.0f - total);
            for (size_t i = 0; i <= ids.size(); ++i) pixel[i * soft.channel_step] *= kept;
            for (const uint8_t id : marked) pixel[channel[id] * soft.channel_step] = drawn[id];
        }
    });
    return marked;
}

ValueMemory::ValueMemory(const MemoryOptions &options, int32_t channels)
    : context_(options.context),
      cells_(options.height * options.width),
      top_k_(options.top_k),
      channels_(channels),
      temperature_(options.temperature) {}

void ValueMemory::refer(int64_t frame, std::span<const uint8_t> ids) {
    for (Block &block : blocks_)
        for (const uint8_t id : ids) block.values.erase(id);
    if (blocks_.empty() || blocks_.back().reference != frame)
        blocks_.push_back({frame, std::vector<int32_t>(1 + context_, -1), {}});
    for (const uint8_t id : ids) blocks_.back().values[id].assign((1 + context_) * size(), 0.0f);
    drop_idle();
}

void ValueMemory::put(int64_t frame, std::span<const uint8_t> ids, const float *values) {
    for (Block &block : blocks_) {
        const auto keep = [&](int32_t slot) {
            block.frames[slot] = static_cast<int32_t>(frame);
            for (size_t i = 0; i < ids.size(); ++i)
                if (const auto own = block.values.find(ids[i]); own != block.values.end())
                    std::copy_n(values + i * size(), size(), own->second.data() + slot * size());
        };
        if (block.reference == frame) keep(0);
        if (context_ > 0) keep(static_cast<int32_t>(1 + frame % context_));
    }
}

void ValueMemory::read(Memory &memory, std::span<const uint8_t> ids, float *out, ThreadPool &pool) {
    const size_t near = static_cast<size_t>(cells_) * top_k_, count = near * memory.top_k_references();
    similarity_.resize(count);
    frame_.resize(count);
    cell_.resize(count);
    memory.top_k(similarity_.data(), frame_.data(), cell_.data());
    for (size_t number = 0; number < blocks_.size(); ++number) {
        const Block &block = blocks_[number];
        if (block.values.empty()) continue;
        int32_t *slot = frame_.data() + number * near;
        // A frame that is both the reference and recent is read from its later slot; both hold the same values.
        for (size_t i = 0; i < near; ++i) {
            const int32_t frame = slot[i];
            slot[i] = -1;
            for (int32_t held = context_; frame >= 0 && held >= 0 && slot[i] < 0; --held)
                if (block.frames[held] == frame) slot[i] = held;
        }
        pointers_.clear();
        for (const auto &[id, kept] : block.values) pointers_.push_back(kept.data());
        found_.resize(pointers_.size() * size());
        const vosrt_values_task task{.struct_size = sizeof(vosrt_values_task),
                                     .threads = 0,
                                     .queries = cells_,
                                     .top_k = top_k_,
                                     .objects = static_cast<int32_t>(pointers_.size()),
                                     .slots = 1 + context_,
                                     .cells = cells_,
                                     .channels = channels_,
                                     .temperature = temperature_,
                                     .reserved = 0,
                                     .similarity = similarity_.data() + number * near,
                                     .slot = slot,
                                     .cell = cell_.data() + number * near,
                                     .values = pointers_.data(),
                                     .out = found_.data()};
        read_values(task, pool);
        size_t from = 0;
        for (const auto &[id, kept] : block.values) {
            const auto to = std::find(ids.begin(), ids.end(), id) - ids.begin();
            std::copy_n(found_.data() + from++ * size(), size(), out + static_cast<size_t>(to) * size());
        }
    }
}

void ValueMemory::remove(uint8_t id) {
    for (Block &block : blocks_) block.values.erase(id);
    drop_idle();
}

// References that the memory keeps: the first, and those of an object.
void ValueMemory::drop_idle() {
    if (blocks_.empty()) return;
    blocks_.erase(std::remove_if(blocks_.begin() + 1, blocks_.end(), [](const Block &block) { return block.values.empty(); }),
                  blocks_.end());
}

Refiner::Refiner(const MaskNetworks &networks, const RefineOptions &options, const MemoryOptions &memory)
    : networks_(networks),
      options_(options),
      grid_{memory.height, memory.width},
      pool_(memory.threads),
      memory_(memory, options.value_channels) {}

void Refiner::take_ids(const Memory &memory) {
    const auto ids = memory.objects().ids();
    ids_.assign(ids.begin(), ids.end());
    label_of_.assign(1, 0);
    label_of_.insert(label_of_.end(), ids.begin(), ids.end());
    channels_.resize(label_of_.size());
    std::iota(channels_.begin(), channels_.end(), 0);
}

void Refiner::step(Memory &memory, const View &frame) {
    frame_ = memory.objects().newest();
    size_ = frame.size;
    features_ = frame.features;
    bgr_.assign(frame.bgr, frame.bgr + 3 * pixels());
    take_ids(memory);
    shows_ = false;  // until the last network has run: a failure leaves what was propagated
    if (ids_.empty()) return;
    readout_.resize(objects() * grid_.height * grid_.width * options_.value_channels);
    memory_.read(memory, ids_, readout_.data(), pool_);
    draw(memory, propagated_);
    // Without feedback it is the propagated masks whose values are remembered; with rounds, the first round needs them too.
    const float *coarse = options_.rounds > 0 || !options_.feedback ? encode(propagated_) : nullptr;
    if (!options_.feedback) memory_.put(frame_, ids_, coarse);
    decode(options_.rounds > 0 ? coarse : readout_.data());
    for (int32_t round = 1; round < options_.rounds; ++round) decode(encode(soft_));
    if (options_.feedback) {
        give_back(memory);
        memory_.put(frame_, ids_, encode(soft_));
    }
    shows_ = true;
}

void Refiner::annotate(Memory &memory, const Picture &mask) {
    take_ids(memory);
    draw(memory, soft_);
    const auto width = static_cast<ptrdiff_t>(1 + objects());
    const std::vector<uint8_t> marked = draw_marks(mask, ids_, {size_, soft_.data(), width, 1}, pool_);
    shows_ = true;
    memory_.refer(frame_, marked);
    memory_.put(frame_, ids_, encode(soft_));
}

void Refiner::remove(const Memory &memory, uint8_t id) {
    memory_.remove(id);
    const auto own = std::find(ids_.begin(), ids_.end(), id);
    if (own == ids_.end()) return;
    if (shows_) {
        const size_t gone = 1 + static_cast<size_t>(own - ids_.begin()), width = 1 + objects();
        float *to = soft_.data();
        for (size_t pixel = 0; pixel < pixels(); ++pixel) {
            const float *from = soft_.data() + pixel * width;
            const float background = from[0] + from[gone];
            for (size_t i = 0; i < width; ++i)
                if (i != gone) *to++ = i == 0 ? background : from[i];
        }
        soft_.resize(pixels() * (width - 1));
    }
    take_ids(memory);
}

void Refiner::labels(Size size, uint8_t *labels, float *confidence) {
    rows_.set(size_.height, size.height, Alignment::half_pixel);
    columns_.set(size_.width, size.width, Alignment::half_pixel);
    const LabelTask task{.height = size_.height,
                         .width = size_.width,
                         .soft = soft_.data(),
                         .stride = static_cast<int64_t>(channels_.size()),
                         .channels = channels_.data(),
                         .ids = label_of_.data(),
                         .count = static_cast<int32_t>(channels_.size()),
                         .out_height = size.height,
                         .out_width = size.width,
                         .rows = &rows_,
                         .columns = &columns_,
                         .labels = labels,
                         .confidence = confidence};
    pool_.run(task.height, [&](int32_t row, int32_t) { label_rows(task, row); });
}

void Refiner::draw(Memory &memory, Pixels &out) {
    const size_t count = 1 + objects();
    cells_.resize(static_cast<size_t>(grid_.height) * grid_.width * count);
    memory.soft_masks(cells_.data());
    out.resize(pixels() * count);
    const auto step = static_cast<ptrdiff_t>(count);
    const Taps from = taps(grid_, size_, step * grid_.width, step, rows_, columns_);
    pool_.run(size_.height, [&](int32_t y, int32_t) {
        float *soft = out.data() + static_cast<size_t>(y) * size_.width * count;
        for (int32_t x = 0; x < size_.width; ++x) {
            const Tap tap = from.at(y, x);
            for (size_t c = 0; c < count; ++c) *soft++ = tap.of(cells_.data() + c);
        }
    });
}

void Refiner::give_back(Memory &memory) {
    const size_t count = 1 + objects();
    const auto step = static_cast<ptrdiff_t>(count);
    const Taps from = taps(size_, grid_, step * size_.width, step, rows_, columns_);
    for (int32_t y = 0; y < grid_.height; ++y)
        for (int32_t x = 0; x < grid_.width; ++x) {
            const Tap tap = from.at(y, x);
            for (size_t c = 0; c < count; ++c)
                cells_[(static_cast<size_t>(y) * grid_.width + x) * count + c] = tap.of(soft_.data() + c);
        }
    memory.set_soft_masks(cells_.data());
}

const float *Refiner::encode(const Pixels &soft) {
    const size_t count = objects();
    planes_.resize(count * pixels());
    values_.resize(count * grid_.height * grid_.width * options_.value_channels);
    // The networks take a plane per object, and no background.
    pool_.run(size_.height, [&](int32_t y, int32_t) {
        const size_t begin = static_cast<size_t>(y) * size_.width, end = begin + size_.width;
        for (size_t i = 0; i < count; ++i)
            for (size_t pixel = begin; pixel < end; ++pixel) planes_[i * pixels() + pixel] = soft[pixel * (1 + count) + 1 + i];
    });
    networks_.encode_masks({.struct_size = sizeof(vosrt_encode_masks_task),
                            .objects = static_cast<int32_t>(count),
                            .height = size_.height,
                            .width = size_.width,
                            .grid_height = grid_.height,
                            .grid_width = grid_.width,
                            .value_channels = options_.value_channels,
                            .reserved = 0,
                            .features = features_,
                            .bgr = bgr_.data(),
                            .masks = planes_.data(),
                            .values = values_.data()});
    return values_.data();
}

void Refiner::decode(const float *values) {
    const size_t count = objects();
    const Size quarter{(size_.height + 3) / 4, (size_.width + 3) / 4};
    const size_t plane = static_cast<size_t>(quarter.height) * quarter.width;
    logits_.resize(count * plane);
    networks_.decode_masks({.struct_size = sizeof(vosrt_decode_masks_task),
                            .objects = static_cast<int32_t>(count),
                            .grid_height = grid_.height,
                            .grid_width = grid_.width,
                            .value_channels = options_.value_channels,
                            .logit_height = quarter.height,
                            .logit_width = quarter.width,
                            .reserved = 0,
                            .features = features_,
                            .readout = readout_.data(),
                            .values = values,
                            .logits = logits_.data()});
    soft_.resize(pixels() * (1 + count));
    const Taps from = taps(quarter, size_, quarter.width, 1, rows_, columns_);
    pool_.run(size_.height, [&](int32_t y, int32_t) {
        float logits[255];
        for (int32_t x = 0; x < size_.width; ++x) {
            const Tap tap = from.at(y, x);
            for (size_t i = 0; i < count; ++i) logits[i] = tap.of(logits_.data() + i * plane);
            const size_t at = (static_cast<size_t>(y) * size_.width + x) * (1 + count);
            if (options_.residual)
                correct(logits, count, propagated_.data() + at, soft_.data() + at);
            else
                aggregate(logits, count, soft_.data() + at);
        }
    });
}

}  // namespace vosrt
