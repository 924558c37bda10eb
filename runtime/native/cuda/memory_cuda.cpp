#include "memory_cuda.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "basis.hpp"
#include "error.hpp"
#include "refiner.hpp"

namespace vosrt {
namespace {

constexpr size_t kMaxRecorded = 8;  // e.g. double-buffered inputs times double-buffered outputs, twice
// Longer jobs insert fewer candidates, because a list that has seen much takes little; shorter ones fill the GPU evenly.
constexpr int32_t kBlocksPerProcessor = 4;

}  // namespace

std::unique_ptr<Memory> open_memory(const MemoryOptions &options) { return std::make_unique<CudaMemory>(options); }

CudaMemory::CudaMemory(const MemoryOptions &options)
    : Memory(options),
      gpu_(cuda::open_gpu(options.device)),
      queue_(options.device),
      copies_(options.device),
      labelled_(options.device),
      grid_{options.height, options.width},
      padded_(cuda::padded_channels(options.channels)),
      half_width_(window_half_widths(options)),
      guide_(options.device, options.guided) {
    if ((static_cast<int64_t>(options.context) + 1) * mask_cells() >= int64_t{1} << 31)
        invalid("a context of " + std::to_string(options.context) + " frames of " + std::to_string(mask_cells()) +
                " cells and parts of cells is too large for a GPU; expected fewer than 2^31 together");
    if (std::max(options.height, options.width) > cuda::kMaxSide)
        invalid("a grid of " + std::to_string(options.height) + "x" + std::to_string(options.width) +
                " cells is too long for a GPU; expected at most " + std::to_string(cuda::kMaxSide) + " rows and columns");
    const cuda::Window window{static_cast<int32_t>(half_width_.size()) - 1, nullptr};
    shape_ = cuda::choose_shape(gpu_, grid_, window, options.channels, options.top_k);
    if (mode_ == SearchMode::full || !can_bound(options.channels)) shape_.head = 0;
    cuda::prepare_match(gpu_, shape_);

    half_widths_ = buffer(half_width_.size() * sizeof(int32_t), "the window");
    mean_ = buffer(options.channels * sizeof(float), "the mean");
    now_ = buffer(sizeof(int64_t), "the frame's number");
    if (options_.centring != 0.0f) {
        centre_ = buffer(mean_.bytes(), "the mean");
        centred_ = buffer(static_cast<size_t>(cells()) * options.channels * sizeof(float), "an embedding");
    }
    if (shape_.head > 0) {
        search_ = buffer(sizeof(cuda::SearchState), "the search");
        axes_ = buffer(static_cast<size_t>(padded_) * shape_.head * sizeof(float), "the search");
    }
    embedding_ = buffer(static_cast<size_t>(cells()) * options.channels * sizeof(float), "an embedding");
    owner_ = buffer(256 * sizeof(int32_t), "the objects");
    channels_ = buffer(256 * sizeof(int32_t), "the objects");
    ids_ = buffer(256, "the objects");
    biases_ = buffer(sizeof(Biases), "the objects");
    if (options_.motion != 0.0f) steps_ = buffer(motion::kAges * static_cast<size_t>(cells()) * sizeof(motion::Step), "the motion");
    step_rows_ = step_rows_for(capacity_);
    reserve_work(1);

    const int64_t before_first = -1;
    queue_.upload(now_.data(), &before_first, sizeof before_first);
    if (shape_.head > 0) queue_.zero(search_.data(), search_.bytes());
    queue_.upload(half_widths_.data(), half_width_.data(), half_widths_.bytes());
    Biases biases;
    biases.fill(options_.object_bias);
    set_biases(biases);
    recorded_.reserve(kMaxRecorded);
    upload_tables();
}

// How the search is cut into jobs: enough blocks that the last ones leave little of the GPU idle.
cuda::PlanOptions CudaMemory::plan_options(size_t references) const {
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
            .pad_context = options_.pad_context};
}

int64_t CudaMemory::bytes() const {
    size_t total = guide_.bytes();
    for (const cuda::Buffer *each :
         {&half_widths_, &mean_, &centre_, &centred_, &now_, &ring_keys_, &ring_bias_, &ring_soft_, &ring_heads_, &axes_, &limits_, &search_, &embedding_, &lists_, &neighbours_, &jobs_,
          &contexts_, &table_, &owner_, &channels_, &ids_, &biases_, &went_to_, &steps_, &step_rows_, &labels_, &confidence_})
        total += each->bytes();
    for (const ReferenceSlot &reference : references_)
        total += reference.keys.bytes() + reference.bias.bytes() + reference.soft.bytes() + reference.heads.bytes();
    return static_cast<int64_t>(total);
}

// ---- bounds of the search (src/cpu/match_bound.hpp, match_tile.hpp) ------------------------------------------

// Takes the axes of a frame's keys, as Search::learn does, and makes the heads of all frames.
void CudaMemory::learn_axes(const Slot &frame) {
    std::vector<uint16_t> keys(static_cast<size_t>(cells()) * padded_);
    queue_.download(keys.data(), frame.keys, keys.size() * sizeof keys[0]);
    queue_.wait();
    std::vector<float> samples;
    for (int32_t cell = 0; cell < cells(); cell += sample_step(cells()))
        for (int32_t c = 0; c < options_.channels; ++c) samples.push_back(cuda::from_bf16(keys[static_cast<size_t>(cell) * padded_ + c]));
    const std::vector<float> rows = principal_axes(samples, options_.channels, shape_.head - 1, options_.channels);
    std::vector<float> columns(static_cast<size_t>(padded_) * shape_.head, 0.0f);
    for (size_t at = 0; at < rows.size(); ++at) columns[at % options_.channels * shape_.head + at / options_.channels] = rows[at];
    queue_.upload(axes_.data(), columns.data(), axes_.bytes());
    queue_.wait();
    learnt_ = true;
    queue_heads(slot_of(0), static_cast<int32_t>(ring_slots_), nullptr);
    for (const ReferenceSlot &reference : references_) queue_heads(reference.slot(), 1, nullptr);
    forget_recordings();
}

// Of `count` frames that lie one behind the other; if `now` is not nullptr, of the newest frame in the ring that begins there.
void CudaMemory::queue_heads(const Slot &first, int32_t count, const int64_t *now) {
    cuda::launch_heads(queue_, {.keys = first.keys,
                                .bias = first.bias,
                                .heads = first.heads,
                                .now = now,
                                .cells = count * cells(),
                                .channels = options_.channels,
                                .context = options_.context,
                                .axes = axes_.data<float>(),
                                .head = shape_.head});
}

float CudaMemory::survivors() const {
    if (shape_.head == 0) return 1.0f;
    cuda::SearchState state{};
    queue_.select();
    queue_.download(&state, search_.data(), sizeof state);
    queue_.wait();
    return state.screened == 0 ? 1.0f : static_cast<float>(static_cast<double>(state.products) / static_cast<double>(state.screened));
}

// ---- a frame -------------------------------------------------------------------------------------------

void CudaMemory::take(const float *embedding) {
    queue_.select();
    queue_.upload(embedding_.data(), embedding, embedding_.bytes());
    begin_frame();
    guide_.set_ready(false);
    queue_mean(embedding_.data<float>());
    queue_frame(embedding_.data<float>(), nullptr);
    queue_.wait();  // the caller's array is free again
}

// Means are fixed by the first frame: what centring removes, and that of what is left, which keys are differences from.
void CudaMemory::queue_mean(const float *embedding) {
    if (objects().frames() != 1) return;
    if (options_.centring != 0.0f) cuda::launch_mean(queue_, embedding, cells(), options_.channels, centre_.data<float>());
    cuda::launch_mean(queue_, queue_centred(embedding), cells(), options_.channels, mean_.data<float>());
}

// The embedding as it is matched.
const float *CudaMemory::queue_centred(const float *embedding) {
    if (options_.centring == 0.0f) return embedding;
    cuda::launch_centre(queue_, {.embedding = embedding,
                                 .centre = centre_.data<float>(),
                                 .cells = cells(),
                                 .channels = options_.channels,
                                 .share = options_.centring,
                                 .out = centred_.data<float>()});
    return centred_.data<float>();
}

void CudaMemory::queue_frame(const float *embedding, cuda::Stopwatch *watch) {
    const auto mark = [&] {
        if (watch != nullptr) watch->mark(queue_);
    };
    mark();
    if (options_.alters_masks() && !objects().references().empty()) settle_newest();
    cuda::launch_advance(queue_, {.options = plan_options(objects().references().size()),
                                  .references = table_.data<cuda::ReferenceEntry>(),
                                  .now = now_.data<int64_t>(),
                                  .contexts = contexts_.data<cuda::Context>(),
                                  .jobs = jobs_.data<cuda::Job>(),
                                  .search = search_.data<cuda::SearchState>(),
                                  .head_share = !learnt_ ? 0.0f : static_cast<float>(shape_.head) / options_.channels,
                                  .always_bounded = mode_ == SearchMode::bounded});
    mark();
    cuda::launch_store(queue_, {.embedding = queue_centred(embedding),
                                .mean = mean_.data<float>(),
                                .cells = cells(),
                                .channels = options_.channels,
                                .context = options_.context,
                                .now = now_.data<int64_t>(),
                                .ring_keys = ring_keys_.data<uint16_t>(),
                                .ring_bias = ring_bias_.data<float>()});
    if (learnt_) queue_heads(slot_of(0), 1, now_.data<int64_t>());
    mark();
    if (objects().references().empty()) {
        mark();
        cuda::launch_clear(queue_, now_.data<int64_t>(), options_.context, mask_cells(), static_cast<int32_t>(capacity_),
                           ring_soft_.data<float>());
    } else {
        match_newest(watch);
    }
    mark();
}

// What is remembered of the newest frame, see CpuMemory::settle_newest.
void CudaMemory::settle_newest() {
    const auto count = static_cast<int32_t>(objects().references().size());
    if (options_.calibration != 0)
        cuda::launch_calibrate(queue_, {.masks = newest_masks(),
                                        .references = table_.data<cuda::ReferenceEntry>(),
                                        .count = count,
                                        .owner = owner_.data<int32_t>(),
                                        .interval = options_.calibration,
                                        .keys_channels = padded_,
                                        .ring_keys = ring_keys_.data<uint16_t>(),
                                        .ring_bias = ring_bias_.data<float>(),
                                        .object_bias = options_.object_bias,
                                        .went_to = went_to_.data<int32_t>(),
                                        .biases = biases_.data<float>()});
    cuda::launch_settle(queue_, {.masks = newest_masks(),
                                 .references = table_.data<cuda::ReferenceEntry>(),
                                 .count = count,
                                 .sharpness = options_.sharpness,
                                 .biases = biases_.data<float>()});
}

void CudaMemory::match_newest(cuda::Stopwatch *watch) {
    const cuda::PlanOptions plan = plan_options(objects().references().size());
    const cuda::Window window{static_cast<int32_t>(half_width_.size()) - 1, half_widths_.data<int32_t>()};
    if (learnt_)
        cuda::launch_seeds(queue_, {.grid = grid_, .window = window, .context = options_.context, .channels = padded_, .top_k = options_.top_k, .now = now_.data<int64_t>(), .contexts = contexts_.data<cuda::Context>(), .references = table_.data<cuda::ReferenceEntry>(), .ring_keys = ring_keys_.data<uint16_t>(), .ring_bias = ring_bias_.data<float>(), .neighbours = neighbours_.data<cuda::Neighbour>(), .limits = limits_.data<float>()},
                           plan.references);
    cuda::launch_match(queue_, shape_,
                       {.grid = grid_,
                        .window = window,
                        .channels = padded_,
                        .context = options_.context,
                        .top_k = options_.top_k,
                        .now = now_.data<int64_t>(),
                        .jobs = jobs_.data<cuda::Job>(),
                        .references = table_.data<cuda::ReferenceEntry>(),
                        .ring_keys = ring_keys_.data<uint16_t>(),
                        .ring_bias = ring_bias_.data<float>(),
                        .lists = lists_.data<cuda::Packed>(),
                        .head = shape_.head,
                        .ring_heads = learnt_ ? ring_heads_.data<uint16_t>() : nullptr,
                        .contexts = contexts_.data<cuda::Context>(),
                        .reference_count = plan.references,
                        .limits = learnt_ ? limits_.data<float>() : nullptr,
                        .search = search_.data<cuda::SearchState>()},
                       plan.max_jobs());
    if (watch != nullptr) watch->mark(queue_);
    cuda::launch_read_out(queue_, {.grid = grid_,
                                   .window = window,
                                   .context = options_.context,
                                   .references = plan.references,
                                   .top_k = options_.top_k,
                                   .channels = options_.channels,
                                   .capacity = static_cast<int32_t>(capacity_),
                                   .parts = options_.parts,
                                   .jobs = plan.max_jobs(),
                                   .lists_per_job = shape_.lists_per_job(),
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
    if (options_.motion != 0.0f && newest_masks().count > 1)
        cuda::launch_motion(queue_, {.masks = newest_masks(),
                                     .window = window,
                                     .top_k = options_.top_k,
                                     .strength = options_.motion,
                                     .contexts = contexts_.data<cuda::Context>(),
                                     .references = table_.data<cuda::ReferenceEntry>(),
                                     .neighbours = neighbours_.data<cuda::Neighbour>(),
                                     .steps = steps_.data<motion::Step>(),
                                     .rows = step_rows_.data<motion::Sums<float>>()});
}

// Room for a frame and its picture.
void CudaMemory::prepare(const FrameTask &task) {
    prepare_frame();
    if (takes_picture(task)) reserve_guide(cuda::CudaGuide::size_for(task.bgr_height, task.bgr_width));
}

void CudaMemory::queue_task(const FrameTask &task, cuda::Stopwatch *watch) {
    queue_frame(task.embedding, watch);
    guide_.set_ready(false);
    if (takes_picture(task)) guide_.set(queue_, task.bgr, task.bgr_height, task.bgr_width, int64_t{3} * task.bgr_width);
    if (task.labels != nullptr) label_pixels(task);
}

// Records a frame in the host's graph, with everything else that the host queues; it counts when that is launched.
void CudaMemory::add_to_capture(const FrameTask &task) {
    require_frame("recording a frame");
    if (ring_slots_ <= options_.context) invalid("recording a frame needs one that came after the session was loaded; push it first");
    const cuda::Grid size = cuda::CudaGuide::size_for(task.bgr_height, task.bgr_width);
    if (takes_picture(task) && !guide_.fits(size, objects().order_channels().size()))
        invalid("recording a frame with its picture needs an earlier one with a picture of this size; take that first");
    const bool ready = guide_.ready();
    queue_task(task);
    guide_.set_ready(ready);  // nothing has run
    captured_picture_ = takes_picture(task);
}

void CudaMemory::frame(const FrameTask &task) {
    queue_.select();
    if (queue_.capturing()) return add_to_capture(task);
    prepare(task);
    std::vector<Matched> before = matched();
    begin_frame();
    try {
        queue_mean(task.embedding);
        if (objects().frames() == 1) return queue_task(task);
        auto found = std::find_if(recorded_.begin(), recorded_.end(), [&](const Recorded &each) { return each.task == task; });
        if (found == recorded_.end()) {
            if (recorded_.size() == kMaxRecorded) recorded_.erase(recorded_.begin());
            found = recorded_.insert(recorded_.end(), Recorded{task, 0, nullptr});
        }
        if (found->graph == nullptr && ++found->seen == 3) found->graph = record([&] { queue_task(task); });
        if (found->graph == nullptr) return queue_task(task);
        queue_.launch(found->graph);
        guide_.set_ready(takes_picture(task));
    } catch (...) {
        drop_frame(std::move(before));
        guide_.set_ready(false);
        throw;
    }
}

// Work as a graph; nullptr where it cannot be captured, so that it is queued as it is.
cuda::Graph CudaMemory::record(const std::function<void()> &work) {
    try {
        queue_.begin_capture();
    } catch (const Error &) {
        return nullptr;
    }
    try {
        work();
    } catch (...) {
        queue_.drop_capture();
        throw;
    }
    try {
        cuda::Graph graph = queue_.end_capture();
        ++recordings_;
        return graph;
    } catch (const Error &) {
        return nullptr;
    }
}

void CudaMemory::time_frame(const FrameTask &task, float *ms) {
    queue_.select();
    cuda::Stopwatch watch(options_.device, kStages);
    prepare(task);
    begin_frame();
    queue_mean(task.embedding);
    queue_task(task, &watch);
    watch.mark(queue_);
    watch.read(ms);
}

void CudaMemory::repeated() {
    require_frame("a recording that was launched");
    begin_frame();
    guide_.set_ready(captured_picture_);
}

void CudaMemory::values(int32_t reference, const float *at_reference, const float *recent, int32_t slots, int32_t channels,
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

void CudaMemory::draw(const cuda::Planes &out) {
    require_frame("reading soft masks");
    queue_.select();
    cuda::launch_draw(queue_, newest_masks(), out);
}

void CudaMemory::refine(const cuda::SoftView &logits, bool residual, const cuda::Planes &out) {
    require_frame("refining");
    queue_.select();
    cuda::launch_refine(queue_, {.coarse = newest_masks(), .logits = logits, .residual = residual, .out = out});
}

void CudaMemory::keep(const cuda::SoftView &planes) {
    require_frame("setting soft masks");
    ++revision_;
    queue_.select();
    cuda::launch_keep(queue_, newest_masks(), planes);
}

void CudaMemory::show(const cuda::SoftView &planes) {
    shown_ = planes;
    shown_at_ = ++revision_;
}

std::vector<uint8_t> CudaMemory::mark(const cuda::Planes &planes, const Picture &mask) {
    require_frame("marking planes");
    const auto ids = objects().ids();
    const int32_t pixels = planes.size.cells();
    std::vector<float> values((1 + ids.size()) * pixels);
    queue_.select();
    queue_.download(values.data(), planes.values, values.size() * sizeof(float));
    queue_.wait();
    ThreadPool alone(1);
    std::vector<uint8_t> marked = draw_marks(mask, ids, {{planes.size.height, planes.size.width}, values.data(), 1, pixels}, alone);
    queue_.upload(planes.values, values.data(), values.size() * sizeof(float));
    queue_.wait();
    return marked;
}

// ---- room ----------------------------------------------------------------------------------------------

// Frame t lies in slot t until the ring is full, so that a session takes only the first slots of the ring; the next frame takes the rest.
void CudaMemory::reserve_frames(int64_t, int64_t end) {
    const int64_t whole = int64_t{options_.context} + 1;
    if (ring_slots_ == whole) return;
    const bool first = ring_slots_ == 0;
    if (first || end > ring_slots_) reserve_ring(first ? std::min(end, whole) : whole);
}

void CudaMemory::reserve_ring(int64_t slots) {
    queue_.select();
    const size_t count = static_cast<size_t>(slots) * cells();
    cuda::Buffer keys = buffer(count * padded_ * sizeof(uint16_t), "the keys of the recent frames");
    cuda::Buffer bias = buffer(count * sizeof(float), "the keys of the recent frames");
    cuda::Buffer soft = buffer(static_cast<size_t>(slots) * mask_cells() * capacity_ * sizeof(float), "the soft masks of the recent frames");
    cuda::Buffer heads;
    if (shape_.head > 0) heads = buffer(count * shape_.head * sizeof(uint16_t), "the keys of the recent frames");
    queue_.zero(soft.data(), soft.bytes());
    if (ring_slots_ > 0) {
        queue_.copy(keys.data(), ring_keys_.data(), ring_keys_.bytes());
        queue_.copy(bias.data(), ring_bias_.data(), ring_bias_.bytes());
        queue_.copy(soft.data(), ring_soft_.data(), ring_soft_.bytes());
        if (shape_.head > 0) queue_.copy(heads.data(), ring_heads_.data(), ring_heads_.bytes());
    }
    queue_.wait();  // what was queued before reads the old arrays
    ring_keys_ = std::move(keys);
    ring_bias_ = std::move(bias);
    ring_soft_ = std::move(soft);
    ring_heads_ = std::move(heads);
    ring_slots_ = slots;
    forget_recordings();
}

void CudaMemory::reserve_objects(const ObjectTable &table) {
    queue_.select();
    grow_channels(table.order_channels().size());
    if (guide_.size().height > 0 && guide_.reserve(guide_.size(), table.order_channels().size())) forget_recordings();
    const size_t entries = table.references().size() * sizeof(cuda::ReferenceEntry);
    if (table_.bytes() < entries) table_ = buffer(entries, "the plan");
    if (shape_.head > 0 && !learnt_ && objects().frames() > 0) learn_axes(slot_of(objects().newest()));
    upload_tables();  // a failure below leaves a memory that goes on with them
    references_.reserve(table.references().size() + 1);
    for (const ObjectTable::Reference &reference : table.references())
        if (references_.empty() || references_.back().frame < reference.frame)
            references_.push_back({reference.frame, buffer(static_cast<size_t>(cells()) * padded_ * sizeof(uint16_t), "a reference's keys"),
                                   buffer(cells() * sizeof(float), "a reference's keys"),
                                   buffer(mask_cells() * capacity_ * sizeof(float), "a reference's soft masks"),
                                   shape_.head > 0 ? buffer(static_cast<size_t>(cells()) * shape_.head * sizeof(uint16_t), "a reference's keys")
                                                   : cuda::Buffer()});
}

void CudaMemory::reserve_work(size_t references) {
    queue_.select();
    const cuda::PlanOptions plan = plan_options(references);
    const auto at_least = [&](cuda::Buffer &held, size_t bytes, const char *what) {
        if (held.bytes() >= bytes) return;
        held = buffer(bytes, what);
        forget_recordings();
    };
    const size_t lists = static_cast<size_t>(plan.max_jobs()) * shape_.lists_per_job() * cells() * options_.top_k;
    at_least(lists_, lists * sizeof(cuda::Packed), "the candidates");
    const size_t neighbours = references * cells() * options_.top_k * sizeof(cuda::Neighbour);
    if (neighbours_.bytes() < neighbours) {  // what the newest frame attended to may still be asked for
        cuda::Buffer more = buffer(neighbours, "the neighbours");
        queue_.fill(more.data(), 0xff, more.bytes());  // cell -1: what no frame has written is no seed
        queue_.copy(more.data(), neighbours_.data(), neighbours_.bytes());
        queue_.wait();
        neighbours_ = std::move(more);
        forget_recordings();
    }
    if (options_.calibration != 0) at_least(went_to_, references * cells() * sizeof(int32_t), "the cells that look back");
    if (shape_.head > 0) at_least(limits_, references * cells() * sizeof(float), "the search");
    if (shape_.head > 0 && !learnt_ && !references_.empty()) learn_axes(references_.front().slot());  // after a session was loaded
    at_least(jobs_, plan.max_jobs() * sizeof(cuda::Job), "the plan");
    at_least(contexts_, references * sizeof(cuda::Context), "the plan");
}

// Tell the GPU which references there are and which channels they give.
void CudaMemory::upload_tables() {
    std::vector<cuda::ReferenceEntry> table;
    std::array<int32_t, 256> owner;
    owner.fill(-1);
    owner[0] = 0;
    for (const ObjectTable::Reference &reference : objects().references()) {
        const Slot slot = reference_slot(reference.frame);
        for (const uint8_t id : reference.ids) owner[objects().channel(id)] = static_cast<int32_t>(table.size());
        table.push_back({reference.frame, slot.keys, slot.bias, slot.soft, slot.heads});
    }
    if (!table.empty()) queue_.upload(table_.data(), table.data(), table.size() * sizeof table[0]);
    queue_.upload(owner_.data(), owner.data(), sizeof owner);
    queue_.upload(channels_.data(), objects().order_channels().data(), objects().order_channels().size() * sizeof(int32_t));
    queue_.upload(ids_.data(), objects().order_ids().data(), objects().order_ids().size());
    queue_.wait();
    forget_recordings();
}

cuda::Buffer CudaMemory::step_rows_for(size_t capacity) const {
    if (options_.motion == 0.0f) return {};
    return buffer(motion::kAges * capacity * cells() * sizeof(motion::Sums<float>), "the motion");
}

void CudaMemory::grow_channels(size_t channels) {
    size_t capacity = capacity_;
    while (capacity < channels) capacity *= 2;
    if (capacity == capacity_) return;
    // Everything is allocated before anything changes.
    const size_t row = capacity * sizeof(float), old_row = capacity_ * sizeof(float);
    const auto wider = [&](const cuda::Buffer &old) {
        if (old.bytes() == 0) return cuda::Buffer();  // the ring of a session that is being read
        const size_t rows = old.bytes() / old_row;
        cuda::Buffer out = buffer(rows * row, "the soft masks of more objects");
        queue_.zero(out.data(), out.bytes());
        queue_.copy_rows(out.data(), row, old.data(), old_row, old_row, rows);
        return out;
    };
    cuda::Buffer step_rows = step_rows_for(capacity);
    cuda::Buffer ring = wider(ring_soft_);
    std::vector<cuda::Buffer> soft;
    for (const ReferenceSlot &reference : references_) soft.push_back(wider(reference.soft));
    queue_.wait();
    ring_soft_ = std::move(ring);
    step_rows_ = std::move(step_rows);
    for (size_t r = 0; r < references_.size(); ++r) references_[r].soft = std::move(soft[r]);
    capacity_ = capacity;
    forget_recordings();
}

// ---- objects -------------------------------------------------------------------------------------------

cuda::NewestMasks CudaMemory::newest_masks() const {
    return {.grid = {options_.mask_height(), options_.mask_width()},
            .parts = options_.parts,
            .context = options_.context,
            .capacity = static_cast<int32_t>(capacity_),
            .count = static_cast<int32_t>(objects().order_ids().size()),
            .now = now_.data<int64_t>(),
            .ring_soft = ring_soft_.data<float>(),
            .channels = channels_.data<int32_t>()};
}

void CudaMemory::with_slot(Place place, Part part, Access access, const std::function<void(const HostSlot &)> &use) {
    queue_.select();
    const Slot slot = place.reference ? reference_slot(place.frame) : slot_of(place.frame);
    const auto count = static_cast<size_t>(cells());
    const size_t whole = part == Part::whole ? count : 0;
    std::vector<uint16_t> keys(whole * padded_);  // padding is zero, as in what a frame stores
    std::vector<float> bias(whole), soft(mask_cells() * capacity_);
    const auto each = [&](const auto &copy) {
        copy(slot.keys, keys);
        copy(slot.bias, bias);
        copy(slot.soft, soft);
        queue_.wait();
    };
    if (access != Access::write)
        each([&](const auto *from, auto &to) { queue_.download(to.data(), from, to.size() * sizeof to[0]); });
    use({reinterpret_cast<std::byte *>(keys.data()), padded_ * sizeof(uint16_t), reinterpret_cast<std::byte *>(bias.data()), sizeof(float),
         soft.data()});
    if (access != Access::read)
        each([&](auto *to, const auto &from) { queue_.upload(to, from.data(), from.size() * sizeof from[0]); });
}

CudaMemory::Slot CudaMemory::slot_of(int64_t frame) const {
    const auto slot = static_cast<size_t>(cuda::ring_slot(frame, options_.context)), first = slot * cells();
    return {ring_keys_.data<uint16_t>() + first * padded_, ring_bias_.data<float>() + first, ring_soft_.data<float>() + slot * mask_cells() * capacity_,
            shape_.head > 0 ? ring_heads_.data<uint16_t>() + first * shape_.head : nullptr};
}

CudaMemory::Slot CudaMemory::reference_slot(int64_t frame) const {
    return std::find_if(references_.begin(), references_.end(), [&](const ReferenceSlot &each) { return each.frame == frame; })->slot();
}

void CudaMemory::keep_reference() {
    const Slot from = slot_of(objects().newest()), to = reference_slot(objects().newest());
    queue_.copy(to.keys, from.keys, static_cast<size_t>(cells()) * padded_ * sizeof(uint16_t));
    queue_.copy(to.bias, from.bias, cells() * sizeof(float));
    queue_.copy(to.soft, from.soft, mask_cells() * capacity_ * sizeof(float));
    if (shape_.head > 0) queue_.copy(to.heads, from.heads, static_cast<size_t>(cells()) * shape_.head * sizeof(uint16_t));
}

void CudaMemory::release(int32_t channel) {
    queue_.select();
    const auto capacity = static_cast<int32_t>(capacity_);
    cuda::launch_release(queue_, ring_soft_.data<float>(), static_cast<int32_t>(mask_cells() * ring_slots_), capacity, channel);
    for (const ReferenceSlot &reference : references_)
        cuda::launch_release(queue_, reference.soft.data<float>(), mask_cells(), capacity, channel);
}

void CudaMemory::objects_changed() {
    // Waits for what is queued, which may still read the slots that go.
    upload_tables();
    std::erase_if(references_, [&](const ReferenceSlot &each) { return !objects().has_reference(each.frame); });
}

Memory::Means CudaMemory::means() const {
    Means out{std::vector<float>(options_.channels), std::vector<float>(centre_.bytes() / sizeof(float))};
    queue_.select();
    queue_.download(out.keys.data(), mean_.data(), mean_.bytes());
    if (centre_.bytes() > 0) queue_.download(out.centre.data(), centre_.data(), centre_.bytes());
    queue_.wait();
    return out;
}

// Of a session: its number of frames is what the GPU counts on from.
void CudaMemory::set_means(const Means &means) {
    queue_.select();
    const int64_t now = objects().newest();
    queue_.upload(now_.data(), &now, sizeof now);
    queue_.upload(mean_.data(), means.keys.data(), mean_.bytes());
    if (centre_.bytes() > 0) queue_.upload(centre_.data(), means.centre.data(), centre_.bytes());
    queue_.wait();
}

Memory::Biases CudaMemory::biases() const {
    Biases out;
    queue_.select();
    queue_.download(out.data(), biases_.data(), sizeof out);
    queue_.wait();
    return out;
}

void CudaMemory::set_biases(const Biases &biases) {
    queue_.select();
    queue_.upload(biases_.data(), biases.data(), sizeof biases);
    queue_.wait();
}

// ---- guided output ---------------------------------------------------------------------------------------

void CudaMemory::reserve_guide(const cuda::Grid &size) {
    if (guide_.reserve(size, objects().order_channels().size())) forget_recordings();
}

void CudaMemory::guide_with(const uint8_t *bgr, int32_t height, int32_t width) {
    require_frame("a picture");
    ++revision_;
    if (!guide_.wanted()) return;
    queue_.select();
    reserve_guide(cuda::CudaGuide::size_for(height, width));
    guide_.set(queue_, bgr, height, width, int64_t{3} * width);
}

void CudaMemory::set_guide(const uint8_t *bgr, int32_t height, int32_t width, int64_t stride) {
    queue_.select();
    reserve_guide(cuda::CudaGuide::size_for(height, width));
    guide_.upload(queue_, bgr, height, width, stride);
}

Memory::GuidePicture CudaMemory::guide_picture() {
    if (!guide_.ready()) return {};
    queue_.select();
    return {guide_.size().height, guide_.size().width, guide_.download(queue_)};
}

void CudaMemory::restore_guide(const GuidePicture &picture) {
    queue_.select();
    reserve_guide({picture.height, picture.width});
    guide_.restore(queue_, picture.pixels);
}

// ---- results -------------------------------------------------------------------------------------------

void CudaMemory::reserve_pixels(int32_t height, int32_t width) {
    const size_t pixels = static_cast<size_t>(height) * width;
    if (labels_.bytes() >= pixels) return;
    cuda::Buffer labels = buffer(pixels, "the labels");
    confidence_ = buffer(pixels * sizeof(float), "the confidence");
    landed_.reset(static_cast<std::byte *>(cuda::allocate_pinned(pixels * (1 + sizeof(float)))));
    labels_ = std::move(labels);  // what is looked at above, last
}

void CudaMemory::label_pixels(const FrameTask &task) {
    require_frame("labelling");
    const bool align_corners = options_.alignment == Alignment::corners;
    cuda::SoftView planes{};
    if (shown_at_ == revision())
        planes = shown_;
    else if (guide_.ready() && objects().order_channels().size() > 1)
        planes = guide_.run(queue_, newest_masks(), align_corners);
    if (task.totals != nullptr) queue_.zero(task.totals, 512 * sizeof(uint64_t));
    cuda::launch_labels(queue_, {.masks = newest_masks(),
                                 .planes = planes,
                                 .align_corners = align_corners,
                                 .size = {task.height, task.width},
                                 .ids = ids_.data<uint8_t>(),
                                 .labels = task.labels,
                                 .confidence = task.confidence,
                                 .totals = task.totals});
}

void CudaMemory::labels(int32_t height, int32_t width, uint8_t *labels, float *confidence) {
    require_frame("labelling");
    queue_.select();
    reserve_pixels(height, width);
    const size_t pixels = static_cast<size_t>(height) * width;
    label_pixels({.height = height,
                  .width = width,
                  .labels = labels_.data<uint8_t>(),
                  .confidence = confidence == nullptr ? nullptr : confidence_.data<float>()});
    queue_.record(labelled_);
    copies_.wait_for(labelled_);
    copies_.download(landed_.get() + pixels * sizeof(float), labels_.data(), pixels);
    if (confidence != nullptr) copies_.download(landed_.get(), confidence_.data(), pixels * sizeof(float));
    copies_.wait();
    std::memcpy(labels, landed_.get() + pixels * sizeof(float), pixels);
    if (confidence != nullptr) std::memcpy(confidence, landed_.get(), pixels * sizeof(float));
}

const Candidate *CudaMemory::neighbours(size_t reference) {
    found_.resize(static_cast<size_t>(cells()) * options_.top_k);
    queue_.select();
    queue_.download(found_.data(), neighbours_.data<Candidate>() + reference * found_.size(), found_.size() * sizeof found_[0]);
    queue_.wait();
    return found_.data();
}

}  // namespace vosrt
