#include "memory.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include "error.hpp"
#include "resample.hpp"
#include "session.hpp"

namespace vosrt {
namespace {

constexpr size_t kMaxRecorded = 8;  // e.g. double-buffered inputs times double-buffered outputs, twice
constexpr int32_t kMaxObjects = 255;
// Longer jobs insert fewer candidates, because a list that has seen much takes little; shorter ones fill the GPU evenly.
constexpr int32_t kBlocksPerProcessor = 4;

}  // namespace

Memory::Memory(const MemoryOptions &options)
    : options_(options),
      gpu_(cuda::open_gpu(options.device)),
      queue_(options.device),
      grid_{options.height, options.width},
      padded_(cuda::padded_channels(options.channels)) {
    if ((static_cast<int64_t>(options.context) + 1) * cells() >= int64_t{1} << 32)
        invalid("a context of " + std::to_string(options.context) + " frames of " + std::to_string(cells()) +
                " cells is too large for a GPU; expected fewer than 2^32 together");
    channel_.fill(-1);
    build_window();
    const cuda::Window window{static_cast<int32_t>(half_width_.size()) - 1, nullptr};
    shape_ = cuda::choose_shape(gpu_, grid_, window, options.channels, options.top_k);
    cuda::prepare_match(shape_);

    const size_t slots = static_cast<size_t>(options.context) + 1, count = slots * cells();
    half_widths_ = buffer(half_width_.size() * sizeof(int32_t), "the window");
    mean_ = buffer(options.channels * sizeof(float), "the mean");
    now_ = buffer(sizeof(int64_t), "the frame's number");
    ring_keys_ = buffer(count * padded_ * sizeof(uint16_t), "the keys of the recent frames");
    ring_bias_ = buffer(count * sizeof(float), "the keys of the recent frames");
    ring_soft_ = buffer(count * capacity_ * sizeof(float), "the soft masks of the recent frames");
    embedding_ = buffer(static_cast<size_t>(cells()) * options.channels * sizeof(float), "an embedding");
    owner_ = buffer(256 * sizeof(int32_t), "the objects");
    channels_ = buffer(256 * sizeof(int32_t), "the objects");
    ids_ = buffer(256, "the objects");
    reserve_work(1);

    const int64_t before_first = -1;
    queue_.upload(now_.data(), &before_first, sizeof before_first);
    queue_.upload(half_widths_.data(), half_width_.data(), half_widths_.bytes());
    queue_.zero(ring_soft_.data(), ring_soft_.bytes());
    order_channels_.reserve(256);
    order_ids_.reserve(256);
    matched_.reserve(256);
    recorded_.reserve(kMaxRecorded);
    update_order();
    upload_tables();
}

// As Memory::build_window of the processor, but for its patches.
void Memory::build_window() {
    const auto extent = static_cast<double>(std::max(options_.height, options_.width));
    const double radius = std::min(static_cast<double>(options_.radius), extent);
    const auto inside = [&](int64_t dx, int64_t dy) {
        const auto x = static_cast<double>(dx), y = static_cast<double>(dy);
        if (options_.window == VOSRT_WINDOW_SQUARE) return std::max(x, y) <= radius;
        return x * x + y * y < static_cast<double>(options_.radius) * options_.radius;
    };
    auto reach = static_cast<int32_t>(radius);
    while (reach > 0 && !inside(0, reach)) --reach;
    half_width_.resize(reach + 1);
    for (int32_t dy = 0; dy <= reach; ++dy) {
        int32_t dx = reach;
        while (dx >= 0 && !inside(dx, dy)) --dx;
        half_width_[dy] = dx;
    }
}

// How the search is cut into jobs: enough blocks that the last ones leave little of the GPU idle.
cuda::PlanOptions Memory::plan_options(size_t references) const {
    const int32_t wanted = cuda::ceil_divide(kBlocksPerProcessor * gpu_.multiprocessors, shape_.patches);
    const int32_t slots_per_job = std::max(1, options_.context / std::max(1, wanted));
    // A job of recent frames has about the window's cells per slot; the reference is cut into pieces of that size.
    const int64_t window = static_cast<int64_t>(2 * half_width_.size()) * (2 * half_width_.size());
    const int64_t piece = std::max<int64_t>(2 * cuda::kTileKeys, window * slots_per_job);
    const int64_t splits = std::clamp<int64_t>(cells() / piece, 1, 16);
    return {.context = options_.context,
            .references = static_cast<int32_t>(references),
            .cells = cells(),
            .slots_per_job = slots_per_job,
            .splits = static_cast<int32_t>(splits),
            .pad_context = options_.pad_context,
            .global_reference = options_.global_reference};
}

int64_t Memory::bytes() const {
    size_t total = 0;
    for (const cuda::Buffer *each :
         {&half_widths_, &mean_, &now_, &ring_keys_, &ring_bias_, &ring_soft_, &embedding_, &lists_, &neighbours_, &jobs_,
          &contexts_, &table_, &owner_, &channels_, &ids_, &labels_, &confidence_})
        total += each->bytes();
    for (const Reference &reference : references_)
        total += reference.keys.bytes() + reference.bias.bytes() + reference.soft.bytes();
    return static_cast<int64_t>(total);
}

int32_t Memory::references() const {
    return static_cast<int32_t>(std::count_if(references_.begin(), references_.end(),
                                              [](const Reference &reference) { return !reference.ids.empty(); }));
}

void Memory::require_frame(const char *what) const {
    if (frames_ == 0) invalid(std::string(what) + " needs a frame; push one first");
}

// ---- a frame -------------------------------------------------------------------------------------------

void Memory::push(const float *embedding) {
    queue_.select();
    queue_.upload(embedding_.data(), embedding, embedding_.bytes());
    begin_frame();
    queue_mean(embedding_.data<float>());
    queue_frame(embedding_.data<float>());
    queue_.wait();  // the caller's array is free again
}

// What the host has to know of a frame.
void Memory::begin_frame() {
    ++frames_;
    matched_.clear();
    for (const Reference &reference : references_) {
        const auto recent = static_cast<int32_t>(std::min<int64_t>(options_.context, frames_ - 1 - reference.frame));
        matched_.push_back({reference.frame, options_.pad_context ? options_.context - recent : 0});
    }
}

// Keys are differences from the first frame's mean.
void Memory::queue_mean(const float *embedding) {
    if (frames_ == 1) cuda::launch_mean(queue_, embedding, cells(), options_.channels, mean_.data<float>());
}

void Memory::queue_frame(const float *embedding, cuda::Stopwatch *watch) {
    const auto mark = [&] {
        if (watch != nullptr) watch->mark(queue_);
    };
    mark();
    cuda::launch_advance(queue_, {.options = plan_options(references_.size()),
                                  .references = table_.data<cuda::ReferenceEntry>(),
                                  .now = now_.data<int64_t>(),
                                  .contexts = contexts_.data<cuda::Context>(),
                                  .jobs = jobs_.data<cuda::Job>()});
    mark();
    cuda::launch_store(queue_, {.embedding = embedding,
                                .mean = mean_.data<float>(),
                                .cells = cells(),
                                .channels = options_.channels,
                                .context = options_.context,
                                .now = now_.data<int64_t>(),
                                .ring_keys = ring_keys_.data<uint16_t>(),
                                .ring_bias = ring_bias_.data<float>()});
    mark();
    if (references_.empty()) {
        mark();
        cuda::launch_clear(queue_, now_.data<int64_t>(), options_.context, cells(), static_cast<int32_t>(capacity_),
                           ring_soft_.data<float>());
    } else {
        match_newest(watch);
    }
    mark();
}

void Memory::match_newest(cuda::Stopwatch *watch) {
    const cuda::PlanOptions plan = plan_options(references_.size());
    const cuda::Window window{static_cast<int32_t>(half_width_.size()) - 1, half_widths_.data<int32_t>()};
    cuda::launch_match(queue_, shape_,
                       {.grid = grid_,
                        .window = window,
                        .channels = padded_,
                        .context = options_.context,
                        .now = now_.data<int64_t>(),
                        .jobs = jobs_.data<cuda::Job>(),
                        .references = table_.data<cuda::ReferenceEntry>(),
                        .ring_keys = ring_keys_.data<uint16_t>(),
                        .ring_bias = ring_bias_.data<float>(),
                        .lists = lists_.data<cuda::Packed>()},
                       plan.max_jobs());
    if (watch != nullptr) watch->mark(queue_);
    cuda::launch_read_out(queue_, {.grid = grid_,
                                   .window = window,
                                   .context = options_.context,
                                   .references = plan.references,
                                   .top_k = options_.top_k,
                                   .channels = options_.channels,
                                   .capacity = static_cast<int32_t>(capacity_),
                                   .jobs = plan.max_jobs(),
                                   .lists_per_job = shape_.lists_per_job(),
                                   .list_length = shape_.list_length(),
                                   .yield_background = options_.yield_background,
                                   .temperature = options_.temperature,
                                   .mean = mean_.data<float>(),
                                   .now = now_.data<int64_t>(),
                                   .job = jobs_.data<cuda::Job>(),
                                   .contexts = contexts_.data<cuda::Context>(),
                                   .reference = table_.data<cuda::ReferenceEntry>(),
                                   .lists = lists_.data<cuda::Packed>(),
                                   .ring_bias = ring_bias_.data<float>(),
                                   .ring_soft = ring_soft_.data<float>(),
                                   .owner = owner_.data<int32_t>(),
                                   .neighbours = neighbours_.data<cuda::Neighbour>()});
}

void Memory::frame(const FrameTask &task) {
    queue_.select();
    const auto work = [&] {
        queue_frame(task.embedding);
        if (task.labels != nullptr) label_pixels(task);
    };
    if (queue_.capturing()) {  // by a host, with everything else that it queues; it counts when it is launched
        require_frame("recording a frame");
        return work();
    }
    begin_frame();
    queue_mean(task.embedding);
    if (frames_ == 1) return work();
    auto found = std::find_if(recorded_.begin(), recorded_.end(), [&](const Recorded &each) { return each.task == task; });
    if (found == recorded_.end()) {
        if (recorded_.size() == kMaxRecorded) recorded_.erase(recorded_.begin());
        found = recorded_.insert(recorded_.end(), Recorded{task, 0, nullptr});
    }
    if (found->graph == nullptr && ++found->seen <= 2) return work();
    if (found->graph == nullptr) {
        queue_.begin_capture();
        try {
            work();
        } catch (...) {
            queue_.drop_capture();
            throw;
        }
        found->graph = queue_.end_capture();
        ++recordings_;
    }
    queue_.launch(found->graph);
}

void Memory::time_frame(const FrameTask &task, float *ms) {
    queue_.select();
    cuda::Stopwatch watch(options_.device, kStages);
    begin_frame();
    queue_mean(task.embedding);
    queue_frame(task.embedding, &watch);
    if (task.labels != nullptr) label_pixels(task);
    watch.mark(queue_);
    watch.read(ms);
}

void Memory::repeated() {
    require_frame("a recording that was launched");
    begin_frame();
}

void Memory::values(int32_t reference, const float *at_reference, const float *recent, int32_t slots, int32_t channels,
                    float *out) {
    require_frame("reading values");
    within(reference, 0, top_k_references() - 1, "reference");
    within(slots, 1, 1025, "slots");
    within(channels, 1, 65536, "channels");
    queue_.select();
    const size_t block = static_cast<size_t>(reference) * cells() * options_.top_k;
    cuda::launch_values(queue_, {.cells = cells(),
                                 .top_k = options_.top_k,
                                 .context = options_.context,
                                 .channels = channels,
                                 .slots = slots,
                                 .temperature = options_.temperature,
                                 .now = now_.data<int64_t>(),
                                 .context_of = contexts_.data<cuda::Context>() + reference,
                                 .neighbours = neighbours_.data<cuda::Neighbour>() + block,
                                 .reference = at_reference,
                                 .recent = recent,
                                 .out = out});
}

void Memory::draw(const cuda::Planes &out) {
    require_frame("reading soft masks");
    queue_.select();
    cuda::launch_draw(queue_, newest_masks(), out);
}

void Memory::refine(const cuda::SoftView &logits, bool residual, const cuda::Planes &out) {
    require_frame("refining");
    queue_.select();
    cuda::launch_refine(queue_, {.coarse = newest_masks(), .logits = logits, .residual = residual, .out = out});
}

void Memory::keep(const cuda::SoftView &planes) {
    require_frame("setting soft masks");
    queue_.select();
    cuda::launch_keep(queue_, newest_masks(), planes);
}

// ---- objects -------------------------------------------------------------------------------------------

void Memory::reserve_work(size_t references) {
    const cuda::PlanOptions plan = plan_options(references);
    const auto at_least = [&](cuda::Buffer &held, size_t bytes, const char *what) {
        if (held.bytes() < bytes) held = buffer(bytes, what);
    };
    const size_t lists = static_cast<size_t>(plan.max_jobs()) * shape_.lists_per_job() * cells() * shape_.list_length();
    at_least(lists_, lists * sizeof(cuda::Packed), "the candidates");
    const size_t neighbours = references * cells() * options_.top_k * sizeof(cuda::Neighbour);
    if (neighbours_.bytes() < neighbours) {  // what the newest frame attended to may still be asked for
        cuda::Buffer more = buffer(neighbours, "the neighbours");
        queue_.copy(more.data(), neighbours_.data(), neighbours_.bytes());
        queue_.wait();
        neighbours_ = std::move(more);
    }
    at_least(jobs_, plan.max_jobs() * sizeof(cuda::Job), "the plan");
    at_least(contexts_, references * sizeof(cuda::Context), "the plan");
    at_least(table_, references * sizeof(cuda::ReferenceEntry), "the plan");
}

// Tell the GPU which references there are and which channels they give.
void Memory::upload_tables() {
    std::vector<cuda::ReferenceEntry> table;
    std::array<int32_t, 256> owner;
    owner.fill(-1);
    owner[0] = 0;
    for (size_t r = 0; r < references_.size(); ++r) {
        const Reference &reference = references_[r];
        table.push_back({reference.frame, reference.keys.data<uint16_t>(), reference.bias.data<float>(), reference.soft.data<float>()});
        for (const uint8_t id : reference.ids) owner[channel_[id]] = static_cast<int32_t>(r);
    }
    if (!table.empty()) queue_.upload(table_.data(), table.data(), table.size() * sizeof table[0]);
    queue_.upload(owner_.data(), owner.data(), sizeof owner);
    queue_.upload(channels_.data(), order_channels_.data(), order_channels_.size() * sizeof(int32_t));
    queue_.upload(ids_.data(), order_ids_.data(), order_ids_.size());
    queue_.wait();
    forget_recordings();
}

void Memory::grow_channels(size_t objects) {
    size_t capacity = capacity_;
    while (capacity < objects + 1) capacity *= 2;
    if (capacity == capacity_) return;
    // Everything is allocated before anything changes.
    const size_t row = capacity * sizeof(float), old_row = capacity_ * sizeof(float);
    const auto wider = [&](const cuda::Buffer &old) {
        const size_t rows = old.bytes() / old_row;
        cuda::Buffer out = buffer(rows * row, "the soft masks of more objects");
        queue_.zero(out.data(), out.bytes());
        queue_.copy_rows(out.data(), row, old.data(), old_row, old_row, rows);
        return out;
    };
    cuda::Buffer ring = wider(ring_soft_);
    std::vector<cuda::Buffer> soft;
    for (const Reference &reference : references_) soft.push_back(wider(reference.soft));
    queue_.wait();
    ring_soft_ = std::move(ring);
    for (size_t r = 0; r < references_.size(); ++r) references_[r].soft = std::move(soft[r]);
    capacity_ = capacity;
    forget_recordings();
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

float *Memory::newest_soft() const {
    const auto slot = static_cast<size_t>(cuda::ring_slot(frames_ - 1, options_.context));
    return ring_soft_.data<float>() + slot * cells() * capacity_;
}

cuda::NewestMasks Memory::newest_masks() const {
    return {.grid = grid_,
            .context = options_.context,
            .capacity = static_cast<int32_t>(capacity_),
            .count = static_cast<int32_t>(order_ids_.size()),
            .now = now_.data<int64_t>(),
            .ring_soft = ring_soft_.data<float>(),
            .channels = channels_.data<int32_t>()};
}

std::vector<float> Memory::download_soft() const {
    std::vector<float> soft(cells() * capacity_);
    queue_.select();
    queue_.download(soft.data(), newest_soft(), soft.size() * sizeof(float));
    queue_.wait();
    return soft;
}

void Memory::upload_soft(const std::vector<float> &soft) {
    queue_.upload(newest_soft(), soft.data(), soft.size() * sizeof(float));
    queue_.wait();
}

// Step for step as Memory::annotate of the processor.
void Memory::annotate(const uint8_t *mask, int32_t height, int32_t width, int64_t stride) {
    require_frame("annotating");
    const GridMask grid = resize_mask(mask, height, width, stride, options_.height, options_.width, options_.alignment);
    const int64_t now = frames_ - 1;
    const size_t count = grid.ids.size();

    std::array<int32_t, 256> channel = channel_;
    std::array<bool, 257> used{};
    size_t objects = 0;
    for (int32_t id = 1; id <= kMaxObjects; ++id)
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
    queue_.select();
    grow_channels(objects);
    const bool same_frame = !references_.empty() && references_.back().frame == now;
    references_.reserve(references_.size() + 1);
    reserve_work(references_.size() + (same_frame ? 0 : 1));
    upload_tables();  // a failure below leaves a memory that goes on with them
    const size_t keys_bytes = static_cast<size_t>(cells()) * padded_ * sizeof(uint16_t), bias_bytes = cells() * sizeof(float);
    Reference fresh{now, {}, {}, {}, {}};
    if (!same_frame) {
        fresh.keys = buffer(keys_bytes, "a reference's keys");
        fresh.bias = buffer(bias_bytes, "a reference's keys");
        fresh.soft = buffer(cells() * capacity_ * sizeof(float), "a reference's soft masks");
    }

    std::vector<float> all = download_soft();
    std::array<bool, 256> is_new{};
    for (const uint8_t id : grid.ids) is_new[channel[id]] = true;
    for (int32_t cell = 0; cell < cells(); ++cell) {
        const float *added = grid.soft.data() + cell * count;
        float *soft = all.data() + cell * capacity_;
        // Rounding may carry the sum just past 1; soft masks are never negative.
        const float kept = std::max(0.0f, 1.0f - std::accumulate(added, added + count, 0.0f));
        for (const uint8_t id : grid.ids)
            if (channel_[id] >= 0) soft[0] += soft[channel_[id]];
        for (size_t c = 0; c < capacity_; ++c)
            if (!is_new[c]) soft[c] *= kept;
        for (size_t i = 0; i < count; ++i) soft[channel[grid.ids[i]]] = added[i];
    }
    upload_soft(all);

    if (!same_frame) {
        const auto slot = static_cast<size_t>(cuda::ring_slot(now, options_.context));
        queue_.copy(fresh.keys.data(), ring_keys_.data() + slot * keys_bytes, keys_bytes);
        queue_.copy(fresh.bias.data(), ring_bias_.data() + slot * bias_bytes, bias_bytes);
        references_.push_back(std::move(fresh));
    }
    Reference &reference = references_.back();
    queue_.copy(reference.soft.data(), newest_soft(), reference.soft.bytes());
    for (const uint8_t id : grid.ids) {
        for (Reference &other : references_) std::erase(other.ids, id);
        reference.ids.push_back(id);
    }
    channel_ = channel;
    references_.erase(std::remove_if(references_.begin() + 1, references_.end(),
                                     [](const Reference &other) { return other.ids.empty(); }),
                      references_.end());
    update_order();
    upload_tables();
}

void Memory::remove(int32_t object_id) {
    if (object_id < 1 || object_id > kMaxObjects || channel_[object_id] < 0)
        invalid("object " + std::to_string(object_id) + " is not tracked; nothing to remove");
    queue_.select();
    const int32_t channel = channel_[object_id], capacity = static_cast<int32_t>(capacity_);
    cuda::launch_release(queue_, ring_soft_.data<float>(), cells() * (options_.context + 1), capacity, channel);
    for (const Reference &reference : references_)
        cuda::launch_release(queue_, reference.soft.data<float>(), cells(), capacity, channel);
    channel_[object_id] = -1;
    for (Reference &reference : references_) std::erase(reference.ids, static_cast<uint8_t>(object_id));
    references_.erase(std::remove_if(references_.begin() + 1, references_.end(),
                                     [](const Reference &other) { return other.ids.empty(); }),
                      references_.end());
    update_order();
    upload_tables();
}

// ---- results -------------------------------------------------------------------------------------------

void Memory::reserve_pixels(int32_t height, int32_t width) {
    const size_t pixels = static_cast<size_t>(height) * width;
    if (labels_.bytes() >= pixels) return;
    cuda::Buffer labels = buffer(pixels, "the labels");
    confidence_ = buffer(pixels * sizeof(float), "the confidence");
    labels_ = std::move(labels);  // what is looked at above, last
}

void Memory::label_pixels(const FrameTask &task, const cuda::SoftView &planes) {
    require_frame("labelling");
    if (task.totals != nullptr) queue_.zero(task.totals, 512 * sizeof(uint64_t));
    cuda::launch_labels(queue_, {.masks = newest_masks(),
                                 .planes = planes,
                                 .align_corners = options_.alignment == Alignment::corners,
                                 .size = {task.height, task.width},
                                 .ids = ids_.data<uint8_t>(),
                                 .labels = task.labels,
                                 .confidence = task.confidence,
                                 .totals = task.totals});
}

void Memory::labels(int32_t height, int32_t width, uint8_t *labels, float *confidence) {
    require_frame("labelling");
    queue_.select();
    reserve_pixels(height, width);
    const size_t pixels = static_cast<size_t>(height) * width;
    label_pixels({.height = height,
                  .width = width,
                  .labels = labels_.data<uint8_t>(),
                  .confidence = confidence == nullptr ? nullptr : confidence_.data<float>()});
    queue_.download(labels, labels_.data(), pixels);
    if (confidence != nullptr) queue_.download(confidence, confidence_.data(), pixels * sizeof(float));
    queue_.wait();
}

void Memory::soft_masks(float *masks) const {
    require_frame("reading soft masks");
    const std::vector<float> all = download_soft();
    const size_t count = order_channels_.size();
    for (int32_t cell = 0; cell < cells(); ++cell)
        for (size_t i = 0; i < count; ++i) masks[cell * count + i] = all[cell * capacity_ + order_channels_[i]];
}

void Memory::set_soft_masks(const float *masks) {
    require_frame("setting soft masks");
    const size_t count = order_channels_.size();
    for (size_t i = 0; i < cells() * count; ++i)
        if (!(masks[i] >= 0.0f && std::isfinite(masks[i])))
            invalid("a soft mask holds " + std::to_string(masks[i]) + "; expected finite values of at least 0");
    std::vector<float> all = download_soft();
    for (int32_t cell = 0; cell < cells(); ++cell)
        for (size_t i = 0; i < count; ++i) all[cell * capacity_ + order_channels_[i]] = masks[cell * count + i];
    upload_soft(all);
}

void Memory::top_k(float *similarity, int32_t *frame, int32_t *cell) const {
    const int64_t now = frames_ - 1;
    const auto count = static_cast<size_t>(cells()) * options_.top_k;
    std::vector<cuda::Neighbour> all(matched_.size() * count);
    queue_.select();
    queue_.download(all.data(), neighbours_.data(), all.size() * sizeof all[0]);
    queue_.wait();
    for (size_t i = 0; i < all.size(); ++i) {
        const Matched &context = matched_[i / count];
        similarity[i] = all[i].similarity;
        cell[i] = all[i].cell;
        frame[i] = all[i].cell < 0                      ? -1
                   : all[i].position <= context.copies ? static_cast<int32_t>(context.frame)
                                                       : static_cast<int32_t>(now - (options_.context + 1 - all[i].position));
    }
}

// ---- sessions ------------------------------------------------------------------------------------------

Memory::Slot Memory::slot_of(int64_t frame) const {
    const auto first = static_cast<size_t>(cuda::ring_slot(frame, options_.context)) * cells();
    return {ring_keys_.data<uint16_t>() + first * padded_, ring_bias_.data<float>() + first, ring_soft_.data<float>() + first * capacity_};
}
Memory::Slot Memory::slot_of(const Reference &reference) const {
    return {reference.keys.data<uint16_t>(), reference.bias.data<float>(), reference.soft.data<float>()};
}

size_t Memory::slot_bytes(size_t objects) const {
    return cells() * (options_.channels * sizeof(uint16_t) + sizeof(float) + (1 + objects) * sizeof(float));
}

void Memory::write_slot(SessionWriter &out, const Slot &slot) const {
    if (out.counting()) return out.skip(slot_bytes(object_ids().size()));
    const auto count = static_cast<size_t>(cells());
    std::vector<uint16_t> keys(count * padded_);
    std::vector<float> bias(count), soft(count * capacity_);
    queue_.download(keys.data(), slot.keys, keys.size() * sizeof keys[0]);
    queue_.download(bias.data(), slot.bias, bias.size() * sizeof bias[0]);
    queue_.download(soft.data(), slot.soft, soft.size() * sizeof soft[0]);
    queue_.wait();
    for (size_t cell = 0; cell < count; ++cell) {
        out.bytes(keys.data() + cell * padded_, options_.channels * sizeof keys[0]);
        out.put(bias[cell]);
    }
    for (size_t cell = 0; cell < count; ++cell)
        for (const int32_t channel : order_channels_) out.put(soft[cell * capacity_ + channel]);
}

void Memory::read_slot(SessionReader &in, const Slot &slot) {
    const auto count = static_cast<size_t>(cells());
    std::vector<uint16_t> keys(count * padded_);  // padding is zero, as in what a frame stores
    std::vector<float> bias(count), soft(count * capacity_);
    for (size_t cell = 0; cell < count; ++cell) {
        std::memcpy(keys.data() + cell * padded_, in.bytes(options_.channels * sizeof keys[0]), options_.channels * sizeof keys[0]);
        bias[cell] = in.get<float>();
    }
    for (size_t cell = 0; cell < count; ++cell)
        for (const int32_t channel : order_channels_) soft[cell * capacity_ + channel] = in.get<float>();
    queue_.upload(slot.keys, keys.data(), keys.size() * sizeof keys[0]);
    queue_.upload(slot.bias, bias.data(), bias.size() * sizeof bias[0]);
    queue_.upload(slot.soft, soft.data(), soft.size() * sizeof soft[0]);
    queue_.wait();
}

void Memory::write(SessionWriter &out) const {
    queue_.select();
    const std::span<const uint8_t> ids = object_ids();
    SessionContents contents{frames_, {ids.begin(), ids.end()}, std::vector<float>(options_.channels), {}};
    if (!out.counting()) {
        queue_.download(contents.mean.data(), mean_.data(), contents.mean.size() * sizeof(float));
        queue_.wait();
    }
    for (const Reference &reference : references_) contents.references.push_back({reference.frame, reference.ids});
    contents.write(out);
    for (int64_t frame = frames_ - contents.kept_frames(options_.context); frame < frames_; ++frame) write_slot(out, slot_of(frame));
    for (const Reference &reference : references_) write_slot(out, slot_of(reference));
}

void Memory::read(SessionReader &in) {
    queue_.select();
    SessionContents contents = SessionContents::read(in, options_, [&](size_t objects) { return slot_bytes(objects); });
    frames_ = contents.frames;
    const int64_t now = frames_ - 1;
    queue_.upload(now_.data(), &now, sizeof now);
    queue_.upload(mean_.data(), contents.mean.data(), contents.mean.size() * sizeof(float));
    for (size_t i = 0; i < contents.ids.size(); ++i) channel_[contents.ids[i]] = static_cast<int32_t>(i + 1);
    update_order();
    grow_channels(contents.ids.size());
    const size_t keys_bytes = static_cast<size_t>(cells()) * padded_ * sizeof(uint16_t), bias_bytes = cells() * sizeof(float);
    for (SessionContents::Reference &reference : contents.references)
        references_.push_back({reference.frame, std::move(reference.ids), buffer(keys_bytes, "a reference's keys"),
                               buffer(bias_bytes, "a reference's keys"),
                               buffer(cells() * capacity_ * sizeof(float), "a reference's soft masks")});
    reserve_work(std::max<size_t>(references_.size(), 1));
    for (int64_t frame = frames_ - contents.kept_frames(options_.context); frame < frames_; ++frame) read_slot(in, slot_of(frame));
    for (const Reference &reference : references_) read_slot(in, slot_of(reference));
    upload_tables();
}

}  // namespace vosrt
