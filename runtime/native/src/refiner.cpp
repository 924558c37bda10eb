#include "refiner.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

#include "error.hpp"
#include "values.hpp"

namespace vosrt {
namespace {

// Where one output pixel lies between four input pixels: bilinear, centres at half-integers, edges repeated.
struct Tap {
    ptrdiff_t a, b, below_a, below_b;
    float wx, wy;

    float of(const float *plane) const { return blend(wx, wy, plane[a], plane[b], plane[below_a], plane[below_b]); }
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

// ---- the order of events ---------------------------------------------------------------------------------

Refiner::Refiner(const RefineOptions &options, const Memory &memory, std::unique_ptr<RefineArrays> arrays)
    : options_(options), memory_(memory), arrays_(std::move(arrays)) {}

void Refiner::take_ids() {
    const auto ids = memory_.objects().ids();
    ids_.assign(ids.begin(), ids.end());
    arrays_->set_ids(ids_);
}

void Refiner::show() {
    shows_ = true;
    arrays_->show();
}

void Refiner::step(const FrameView &frame) {
    frame_ = memory_.objects().newest();
    arrays_->follow(frame);
    take_ids();
    shows_ = false;  // until the last network has run: a failure leaves what was propagated
    if (ids_.empty()) return;
    check_values();
    arrays_->read(blocks_);
    arrays_->draw();
    // Without feedback it is the propagated masks whose values are remembered; with rounds, the first round needs them too.
    if (options_.rounds > 0 || !options_.feedback) arrays_->encode();
    if (!options_.feedback) put();
    arrays_->decode(options_.rounds == 0);
    for (int32_t round = 1; round < options_.rounds; ++round) {
        arrays_->encode();
        arrays_->decode(false);
    }
    if (options_.feedback) {
        arrays_->give_back();
        arrays_->encode();
        put();
    }
    show();
}

void Refiner::annotate(const Picture &mask) {
    take_ids();
    arrays_->draw();
    const std::vector<uint8_t> marked = arrays_->mark(mask);
    show();
    refer(marked);
    arrays_->encode();
    put();
}

void Refiner::remove(uint8_t id) {
    forget(id);
    drop_idle();
    const auto own = std::find(ids_.begin(), ids_.end(), id);
    if (own == ids_.end()) return;
    if (shows_) arrays_->drop(1 + static_cast<size_t>(own - ids_.begin()));
    take_ids();
    if (shows_) show();
}

void Refiner::refer(std::span<const uint8_t> ids) {
    for (const uint8_t id : ids) forget(id);
    if (blocks_.empty() || blocks_.back().reference != frame_)
        blocks_.push_back({frame_, std::vector<int64_t>(1 + memory_.options().context, -1), {}});
    for (const uint8_t id : ids) {
        arrays_->hold(id);
        blocks_.back().ids.push_back(id);
    }
    drop_idle();
}

void Refiner::put() {
    const int32_t context = memory_.options().context;
    for (ValueBlock &block : blocks_) {
        const auto keep = [&](int32_t slot) {
            block.frames[slot] = frame_;
            for (size_t i = 0; i < ids_.size(); ++i)
                if (std::find(block.ids.begin(), block.ids.end(), ids_[i]) != block.ids.end()) arrays_->keep(ids_[i], i, slot);
        };
        if (block.reference == frame_) keep(0);
        if (context > 0) keep(static_cast<int32_t>(1 + frame_ % context));
    }
}

void Refiner::forget(uint8_t id) {
    for (ValueBlock &block : blocks_) std::erase(block.ids, id);
    arrays_->forget(id);
}

// References that the memory keeps: the first, and those of an object.
void Refiner::drop_idle() {
    if (blocks_.empty()) return;
    blocks_.erase(std::remove_if(blocks_.begin() + 1, blocks_.end(), [](const ValueBlock &block) { return block.ids.empty(); }),
                  blocks_.end());
}

void Refiner::check_values() const {
    for (const uint8_t id : ids_)
        if (std::none_of(blocks_.begin(), blocks_.end(), [id](const ValueBlock &block) {
                return std::find(block.ids.begin(), block.ids.end(), id) != block.ids.end();
            }))
            invalid("object " + std::to_string(id) + " has no values since marking it failed; mark it again, or remove it");
}

// ---- the networks' runs ----------------------------------------------------------------------------------

void RefineArrays::run_encoder(const float *masks, float *values) const {
    networks_.encode_masks({.struct_size = sizeof(vosrt_encode_masks_task),
                            .objects = static_cast<int32_t>(objects()),
                            .height = view_.size.height,
                            .width = view_.size.width,
                            .grid_height = grid_.height,
                            .grid_width = grid_.width,
                            .value_channels = options_.value_channels,
                            .reserved = 0,
                            .features = view_.features,
                            .bgr = view_.bgr,
                            .masks = masks,
                            .values = values});
}

void RefineArrays::run_decoder(const float *readout, const float *values, float *logits) const {
    networks_.decode_masks({.struct_size = sizeof(vosrt_decode_masks_task),
                            .objects = static_cast<int32_t>(objects()),
                            .grid_height = grid_.height,
                            .grid_width = grid_.width,
                            .value_channels = options_.value_channels,
                            .logit_height = quarter().height,
                            .logit_width = quarter().width,
                            .reserved = 0,
                            .features = view_.features,
                            .readout = readout,
                            .values = values,
                            .logits = logits});
}

// ---- in host memory --------------------------------------------------------------------------------------

namespace {

class HostArrays final : public RefineArrays {
   public:
    explicit HostArrays(const RefineTask &task)
        : RefineArrays(task), memory_(task.memory), pool_(memory_.options().threads) {}

    void follow(const FrameView &frame) override {
        view_ = frame;
        bgr_.assign(frame.bgr, frame.bgr + 3 * pixels());
        view_.bgr = bgr_.data();
    }
    void set_ids(std::span<const uint8_t> ids) override {
        ids_.assign(ids.begin(), ids.end());
        label_of_.assign(1, 0);
        label_of_.insert(label_of_.end(), ids.begin(), ids.end());
        channels_.resize(label_of_.size());
        std::iota(channels_.begin(), channels_.end(), 0);
    }
    void draw() override;
    std::vector<uint8_t> mark(const Picture &mask) override {
        return draw_marks(mask, ids_, {view_.size, masks_->data(), static_cast<ptrdiff_t>(1 + objects()), 1}, pool_);
    }
    void drop(size_t channel) override;
    void encode() override;
    void decode(bool from_readout) override;
    void give_back() override;
    void show() override {}
    void labels(Size size, uint8_t *labels, float *confidence) override;
    void hold(uint8_t id) override { held_[id].assign((1 + memory_.options().context) * value_size(), 0.0f); }
    void forget(uint8_t id) override { held_.erase(id); }
    void keep(uint8_t id, size_t index, int32_t slot) override {
        std::copy_n(values_.data() + index * value_size(), value_size(), held_.at(id).data() + slot * value_size());
    }
    void read(std::span<const ValueBlock> blocks) override;

   private:
    using Pixels = std::vector<float>;  // f32 [height, width, 1 + objects] of the working frame

    Size mask_grid() const { return {memory_.options().mask_height(), memory_.options().mask_width()}; }

    Memory &memory_;
    ThreadPool pool_;

    std::vector<uint8_t> bgr_, label_of_;  // the second by channel: background, then ids_
    std::vector<int32_t> channels_;
    Pixels refined_, propagated_;
    Pixels *masks_ = &propagated_;  // one of them
    std::vector<float> readout_, values_, planes_, logits_, parts_;
    SampleAxis rows_, columns_;

    std::map<uint8_t, std::vector<float>> held_;  // f32 [slots, cells, V]
    std::vector<float> similarity_, found_;
    std::vector<int32_t> frame_, cell_;
    std::vector<const float *> pointers_;
};

void HostArrays::drop(size_t channel) {
    const size_t width = 1 + objects();
    float *to = masks_->data();
    for (size_t pixel = 0; pixel < pixels(); ++pixel) {
        const float *from = masks_->data() + pixel * width;
        const float background = from[0] + from[channel];
        for (size_t i = 0; i < width; ++i)
            if (i != channel) *to++ = i == 0 ? background : from[i];
    }
    masks_->resize(pixels() * (width - 1));
}

void HostArrays::read(std::span<const ValueBlock> blocks) {
    const MemoryOptions &options = memory_.options();
    readout_.resize(objects() * value_size());
    const size_t near = static_cast<size_t>(options.cells()) * options.top_k, count = near * memory_.top_k_references();
    similarity_.resize(count);
    frame_.resize(count);
    cell_.resize(count);
    memory_.top_k(similarity_.data(), frame_.data(), cell_.data());
    for (size_t number = 0; number < blocks.size(); ++number) {
        const ValueBlock &block = blocks[number];
        if (block.ids.empty()) continue;
        int32_t *slot = frame_.data() + number * near;
        // A frame that is both the reference and recent is read from its later slot; both hold the same values.
        for (size_t i = 0; i < near; ++i) {
            const int32_t frame = slot[i];
            slot[i] = -1;
            for (int32_t held = options.context; frame >= 0 && held >= 0 && slot[i] < 0; --held)
                if (block.frames[held] == frame) slot[i] = held;
        }
        pointers_.clear();
        for (const uint8_t id : block.ids) pointers_.push_back(held_.at(id).data());
        found_.resize(pointers_.size() * value_size());
        const vosrt_values_task task{.struct_size = sizeof(vosrt_values_task),
                                     .threads = 0,
                                     .queries = options.cells(),
                                     .top_k = options.top_k,
                                     .objects = static_cast<int32_t>(pointers_.size()),
                                     .slots = 1 + options.context,
                                     .cells = options.cells(),
                                     .channels = options_.value_channels,
                                     .temperature = options.temperature,
                                     .reserved = 0,
                                     .similarity = similarity_.data() + number * near,
                                     .slot = slot,
                                     .cell = cell_.data() + number * near,
                                     .values = pointers_.data(),
                                     .out = found_.data()};
        read_values(task, pool_);
        size_t from = 0;
        for (const uint8_t id : block.ids) {
            const auto to = std::find(ids_.begin(), ids_.end(), id) - ids_.begin();
            std::copy_n(found_.data() + from++ * value_size(), value_size(), readout_.data() + static_cast<size_t>(to) * value_size());
        }
    }
}

void HostArrays::labels(Size size, uint8_t *labels, float *confidence) {
    rows_.set(view_.size.height, size.height, Alignment::half_pixel);
    columns_.set(view_.size.width, size.width, Alignment::half_pixel);
    const LabelTask task{.height = view_.size.height,
                         .width = view_.size.width,
                         .soft = masks_->data(),
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

void HostArrays::draw() {
    const size_t count = 1 + objects();
    parts_.resize(static_cast<size_t>(memory_.mask_cells()) * count);
    memory_.soft_masks(parts_.data());
    propagated_.resize(pixels() * count);
    masks_ = &propagated_;
    const auto step = static_cast<ptrdiff_t>(count);
    const Size grid = mask_grid();
    const Taps from = taps(grid, view_.size, step * grid.width, step, rows_, columns_);
    pool_.run(view_.size.height, [&](int32_t y, int32_t) {
        float *soft = propagated_.data() + static_cast<size_t>(y) * view_.size.width * count;
        for (int32_t x = 0; x < view_.size.width; ++x) {
            const Tap tap = from.at(y, x);
            for (size_t c = 0; c < count; ++c) *soft++ = tap.of(parts_.data() + c);
        }
    });
}

void HostArrays::give_back() {
    const size_t count = 1 + objects();
    const auto step = static_cast<ptrdiff_t>(count);
    const Size grid = mask_grid();
    const Taps from = taps(view_.size, grid, step * view_.size.width, step, rows_, columns_);
    for (int32_t y = 0; y < grid.height; ++y)
        for (int32_t x = 0; x < grid.width; ++x) {
            const Tap tap = from.at(y, x);
            for (size_t c = 0; c < count; ++c)
                parts_[(static_cast<size_t>(y) * grid.width + x) * count + c] = tap.of(masks_->data() + c);
        }
    memory_.set_soft_masks(parts_.data());
}

void HostArrays::encode() {
    const size_t count = objects();
    planes_.resize(count * pixels());
    values_.resize(count * value_size());
    const Pixels &soft = *masks_;
    // The networks take a plane per object, and no background.
    pool_.run(view_.size.height, [&](int32_t y, int32_t) {
        const size_t begin = static_cast<size_t>(y) * view_.size.width, end = begin + view_.size.width;
        for (size_t i = 0; i < count; ++i)
            for (size_t pixel = begin; pixel < end; ++pixel) planes_[i * pixels() + pixel] = soft[pixel * (1 + count) + 1 + i];
    });
    run_encoder(planes_.data(), values_.data());
}

void HostArrays::decode(bool from_readout) {
    const size_t count = objects();
    const Size quarter = this->quarter();
    const size_t plane = static_cast<size_t>(quarter.height) * quarter.width;
    logits_.resize(count * plane);
    run_decoder(readout_.data(), from_readout ? readout_.data() : values_.data(), logits_.data());
    refined_.resize(pixels() * (1 + count));
    const Taps from = taps(quarter, view_.size, quarter.width, 1, rows_, columns_);
    pool_.run(view_.size.height, [&](int32_t y, int32_t) {
        float logits[255];
        for (int32_t x = 0; x < view_.size.width; ++x) {
            const Tap tap = from.at(y, x);
            for (size_t i = 0; i < count; ++i) logits[i] = tap.of(logits_.data() + i * plane);
            const size_t at = (static_cast<size_t>(y) * view_.size.width + x) * (1 + count);
            if (options_.residual)
                correct(logits, count, propagated_.data() + at, refined_.data() + at);
            else
                aggregate(logits, count, refined_.data() + at);
        }
    });
    masks_ = &refined_;
}

}  // namespace

std::unique_ptr<RefineArrays> make_host_arrays(const RefineTask &task) { return std::make_unique<HostArrays>(task); }

}  // namespace vosrt
