#include "stream.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "objects.hpp"
#include "presence.hpp"
#include "session.hpp"

namespace vosrt {
namespace {

class Stopwatch {
   public:
    double lap_ms() {
        const auto now = std::chrono::steady_clock::now();
        return 1e3 * std::chrono::duration<double>(now - std::exchange(start_, now)).count();
    }

   private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

Stream::Stream(std::shared_ptr<const Model> model, const vosrt_stream_options &options)
    : model_(std::move(model)),
      options_(options),
      memory_options_(model_->memory_options()),
      refinement_(model_->refinement(options.refine)) {
    check_size(options.size);
    within(options.threads, 0, 1024, "options.threads");
    if (options.memory != nullptr) memory_options_ = read_struct(options.memory, "options.memory", default_memory_options());
    memory_options_.struct_size = sizeof memory_options_;
    memory_options_.height = memory_options_.width = 1;
    memory_options_.channels = model_->channels();
    memory_options_.align_corners = model_->memory_options().align_corners;
    if (options.threads != 0) memory_options_.threads = options.threads;
    presence_ = resolve(memory_options_).presence;
}

void Stream::require_frame(const char *what) const {
    if (memory_ == nullptr) invalid(std::string(what) + " needs a frame; step first");
}

void Stream::require_networks_on_host() const {
    if (refinement_ && model_->refines_on_gpu()) invalid("this stream refines masks on a GPU; push its frames, then call vosrt_stream_refine");
}

void Stream::check_mask(const Picture &mask, Size frame) const {
    if (mask.format != VOSRT_FORMAT_GRAY) invalid("mask.format is not VOSRT_FORMAT_GRAY; masks have one byte per pixel");
    const Size size{mask.height, mask.width};
    if (size != frame)
        throw Error(VOSRT_INVALID_MASK, "the mask has " + text_of(size) + " pixels, the frame " + text_of(frame) +
                                            "; give a mask of the frame's size");
    const auto present = ids_in(mask);
    if (std::none_of(present.begin() + 1, present.end(), [](bool is) { return is; }))
        throw Error(VOSRT_INVALID_MASK, "the mask marks no object; expected at least one pixel that is not 0");
}

void Stream::check_shape(Size frame, Size grid) const {
    if (memory_ != nullptr && (frame != frame_ || grid != grid_))
        invalid("the frame size changed within the stream from " + text_of(frame_) + " pixels (grid " + text_of(grid_) + ") to " +
                text_of(frame) + " (grid " + text_of(grid) + "); open a stream per size");
}

// What the results of a frame need, allocated once: at the first frame, or when a loaded stream is first asked for one.
void Stream::reserve_results() {
    const size_t pixels = static_cast<size_t>(frame_.height) * frame_.width;
    labels_.resize(pixels);
    annotation_.resize(pixels);
    confidence_.resize(pixels);
}

// The first frame decides on the sizes of all.
void Stream::begin(Size frame, Size grid) {
    if (memory_ == nullptr) {
        frame_ = frame;
        grid_ = grid;
    }
    reserve_results();
}

void Stream::drop_features() {
    if (features_ != nullptr) model_->release(std::exchange(features_, nullptr));
}

// A frame with all that networks made of it before the memory takes it.
struct Stream::Encoded {
    const float *embedding;
    const uint8_t *bgr;  // nullptr: neither guided nor refined
    Size working;
    void *features;
    double resize_ms, encode_ms;
};

void Stream::step(const Picture &frame, const std::optional<Picture> &mask) {
    if (!model_->encodes()) invalid("this model's engine has no encode; give frames with their embedding to vosrt_stream_take");
    require_networks_on_host();
    Stopwatch watch;
    const Size size{frame.height, frame.width};
    const Size working = model_->working_size(size, options_.size), grid = model_->grid(working);
    check_shape(size, grid);
    if (mask) check_mask(*mask, size);
    begin(size, grid);

    const uint8_t *bgr = frame.data;
    if (size != working || !is_dense_bgr(frame)) {
        working_.resize(static_cast<size_t>(working.height) * working.width * 3);
        scaler_.run(frame, working_.data(), working.height, working.width, int64_t{3} * working.width);
        bgr = working_.data();
    }
    const double resize_ms = watch.lap_ms();
    embedding_.reserve(static_cast<size_t>(grid.height) * grid.width * model_->channels() * sizeof(float));
    auto *embedding = reinterpret_cast<float *>(embedding_.data());
    void *features = nullptr;
    model_->encode(bgr, working, embedding, refinement_ ? &features : nullptr);
    drop_features();  // of the frame before; a failure leaves that frame the newest, with its features
    features_ = features;
    follow({embedding, bgr, working, features, resize_ms, watch.lap_ms()}, mask);
}

// The grid of an embedding that fits this stream.
Size Stream::accept(const vosrt_embedding &given) const {
    const Size size{within(given.frame_height, 1, kMaxSide, "embedding.frame_height"),
                    within(given.frame_width, 1, kMaxSide, "embedding.frame_width")};
    const Size grid{within(given.grid_height, 1, kMaxSide, "embedding.grid_height"),
                    within(given.grid_width, 1, kMaxSide, "embedding.grid_width")};
    within(given.channels, model_->channels(), model_->channels(), "embedding.channels");
    check_shape(size, grid);
    return grid;
}

void Stream::take(const vosrt_embedding &given, const std::optional<Picture> &mask) {
    require_networks_on_host();
    const Size size{given.frame_height, given.frame_width}, grid = accept(given);
    if (given.bgr != nullptr) {
        within(given.height, 1, kMaxSide, "embedding.height");
        within(given.width, 1, kMaxSide, "embedding.width");
    } else if (refinement_) {
        invalid("embedding.bgr is NULL, but this stream refines masks and needs the working frame");
    }
    if (mask) check_mask(*mask, size);
    begin(size, grid);
    drop_features();
    follow({given.array, given.bgr, {given.height, given.width}, given.features, given.resize_ms, given.encode_ms}, mask);
}

void Stream::expect(const vosrt_embedding &given) {
    if (refinement_ && !model_->refines_on_gpu()) invalid("this stream refines masks; give its frames to vosrt_stream_take");
    begin({given.frame_height, given.frame_width}, accept(given));
    make_memory();
    result_.resize_ms = result_.encode_ms = result_.match_ms = result_.refine_ms = 0.0;
}

void Stream::make_memory() {
    if (memory_ != nullptr) return;
    memory_options_.height = grid_.height;
    memory_options_.width = grid_.width;
    std::shared_ptr<Memory> memory = Memory::create(resolve(memory_options_));
    if (refinement_) {
        const auto make = model_->refines_on_gpu() ? make_device_arrays : make_host_arrays;
        refiner_ = std::make_unique<Refiner>(*refinement_, *memory, make({*model_, *refinement_, *memory}));
    }
    memory_ = std::move(memory);
}

void Stream::refine(const vosrt_embedding &given) {
    if (refiner_ == nullptr || !model_->refines_on_gpu()) invalid("this stream refines no masks on a GPU, or has no frame");
    const Size working{within(given.height, 1, kMaxSide, "embedding.height"), within(given.width, 1, kMaxSide, "embedding.width")};
    if (given.bgr == nullptr) invalid("embedding.bgr is NULL; the mask networks need the working frame");
    Stopwatch watch;
    refiner_->step({given.bgr, working, given.features});
    result_.refine_ms = watch.lap_ms();
}

// Everything that follows the encoder.
void Stream::follow(const Encoded &encoded, const std::optional<Picture> &mask) {
    Stopwatch watch;
    make_memory();
    memory_->push(encoded.embedding);
    if (encoded.bgr != nullptr)
        memory_->guide(encoded.bgr, encoded.working.height, encoded.working.width, int64_t{3} * encoded.working.width);
    result_.resize_ms = encoded.resize_ms;
    result_.encode_ms = encoded.encode_ms;
    result_.match_ms = watch.lap_ms();
    result_.refine_ms = 0.0;
    if (refiner_) {
        refiner_->step({encoded.bgr, encoded.working, encoded.features});
        result_.refine_ms = watch.lap_ms();
    }
    if (mask) annotate(*mask);
}

void Stream::add(const Picture &mask) {
    require_frame("adding objects");
    check_mask(mask, frame_);
    result_.resize_ms = result_.encode_ms = result_.match_ms = result_.refine_ms = 0.0;
    annotate(mask);
}

void Stream::annotate(const Picture &mask) {
    reserve_results();
    const auto marked = ids_in(mask);
    for (int32_t id = 1; id < 256; ++id)
        if (marked[id] && memory_->objects().channel(static_cast<uint8_t>(id)) < 0) presences_[id] = {};  // a removed object's
    memory_->annotate(mask.data, mask.height, mask.width, mask.stride);
    if (!annotated()) std::fill(annotation_.begin(), annotation_.end(), uint8_t{0});
    for (int32_t y = 0; y < mask.height; ++y)
        for (int32_t x = 0; x < mask.width; ++x) {
            const uint8_t id = mask.data[y * mask.stride + x];
            uint8_t &kept = annotation_[static_cast<size_t>(y) * mask.width + x];
            if (id != 0)
                kept = id;
            else if (marked[kept])
                kept = 0;
        }
    annotated_at_ = memory_->objects().frames();
    if (refiner_) {
        Stopwatch watch;
        refiner_->annotate(mask);
        result_.refine_ms += watch.lap_ms();
    }
}

void Stream::remove(int32_t object_id) {
    require_frame("removing an object");
    memory_->remove(object_id);
    if (refiner_) refiner_->remove(static_cast<uint8_t>(object_id));
    std::replace(annotation_.begin(), annotation_.end(), static_cast<uint8_t>(object_id), uint8_t{0});
}

const vosrt_result &Stream::result() {
    require_frame("a result");
    if (stale()) label();
    const auto ids = memory_->objects().ids();
    result_.struct_size = sizeof result_;
    result_.height = frame_.height;
    result_.width = frame_.width;
    result_.object_count = static_cast<int32_t>(ids.size());
    result_.index = memory_->objects().frames() - 1;
    result_.labels = labels_.data();
    result_.confidence = confidence_.data();
    result_.object_ids = ids.data();
    result_.object_confidence = object_confidence_.data();
    result_.objects = objects_.data();
    return result_;
}

void Stream::finish_call() {
    const vosrt_result &done = result();
    if (options_.on_result != nullptr) options_.on_result(options_.user, &done);
}

void Stream::label() {
    Stopwatch watch;
    reserve_results();
    if (refiner_ && refiner_->shows())
        refiner_->labels(frame_, labels_.data(), confidence_.data());
    else
        memory_->labels(frame_.height, frame_.width, labels_.data(), confidence_.data());
    if (annotated()) overrule();
    const auto ids = memory_->objects().ids();
    measure(memory_->objects().frames() - 1, {frame_.height, frame_.width, labels_.data(), confidence_.data()}, ids, objects_.data());
    for (size_t i = 0; i < ids.size(); ++i) object_confidence_[i] = objects_[i].confidence;
    labelled_ = memory_->revision();
    result_.labels_ms = watch.lap_ms();
}

// An annotated frame shows its annotation: inside, the marked ids; outside, none of them.
void Stream::overrule() {
    std::array<bool, 256> marked{};
    for (const uint8_t id : annotation_) marked[id] = true;
    marked[0] = false;
    for (size_t i = 0; i < labels_.size(); ++i) {
        if (annotation_[i] == 0 && !marked[labels_[i]]) continue;
        labels_[i] = annotation_[i];
        confidence_[i] = 1.0f;
    }
}

void Stream::measure(int64_t frame, const LabelMap &map, std::span<const uint8_t> ids, vosrt_object *objects) {
    measure_objects(map, ids, objects);
    for (size_t i = 0; i < ids.size(); ++i) follow_object(presence_, presences_[ids[i]], frame, objects[i]);
}

void Stream::copy_labels(uint8_t *labels, int64_t stride) const {
    require_frame("copying labels");
    if (stale()) invalid("the labels were not computed yet; ask for vosrt_stream_result first");
    check_image(frame_.height, frame_.width, stride, 1);
    for (int32_t y = 0; y < frame_.height; ++y)
        std::copy_n(labels_.data() + static_cast<size_t>(y) * frame_.width, frame_.width, labels + y * stride);
}

Memory &Stream::saved_memory() {
    require_frame("saving");
    if (refinement_) throw Error(VOSRT_UNSUPPORTED, "a stream that refines masks cannot be saved yet; open it with refine off");
    return *memory_;
}

vosrt_session Stream::session() const {
    vosrt_session out{};
    out.struct_size = sizeof out;
    out.frame_height = frame_.height;
    out.frame_width = frame_.width;
    out.annotation = annotated() ? annotation_.data() : nullptr;
    std::copy(model_->graph_sha256().begin(), model_->graph_sha256().end(), out.model);
    return out;
}

void Stream::load(std::span<const uint8_t> data) {
    if (refinement_)
        throw Error(VOSRT_UNSUPPORTED, "a saved stream continues without refinement; open this one with refine off");
    SessionReader reader(data);
    const vosrt_session &session = reader.session();
    const vosrt_memory_options &saved = reader.options();
    if (session.frame_height == 0 || session.frame_width == 0) SessionReader::refuse("it holds a memory without a stream");
    if (saved.align_corners != memory_options_.align_corners)
        SessionReader::refuse(saved.align_corners == 0 ? "its corners are not aligned, those of this model are; load the bundle that it was saved with"
                                                       : "its corners are aligned, those of this model are not; load the bundle that it was saved with");
    const Size frame{session.frame_height, session.frame_width}, grid{saved.height, saved.width};
    // Where the host encodes, it knows the working size, and the next frame's is checked.
    const Size own = model_->encodes() ? model_->grid(model_->working_size(frame, options_.size)) : grid;
    if (saved.channels == model_->channels() && grid != own)
        SessionReader::refuse("its frames of " + text_of(frame) + " pixels have a grid of " + text_of(grid) + ", here they have " + text_of(own) +
                              "; open the stream with the size that it was saved with");
    auto loaded = reader.read({.struct_size = sizeof(vosrt_load_options),
                               .precision = memory_options_.precision,
                               .isa = memory_options_.isa,
                               .threads = memory_options_.threads,
                               .channels = model_->channels(),
                               .max_side = model_->largest_grid_side(),
                               .device = memory_options_.device,
                               .reserved = 0,
                               .model = model_->graph_sha256().data()});
    frame_ = frame;
    grid_ = grid;
    if (session.annotation != nullptr) annotation_.assign(session.annotation, session.annotation + static_cast<size_t>(frame.height) * frame.width);
    memory_ = std::move(loaded);
    presence_ = memory_->options().presence;
    if (session.annotation != nullptr) annotated_at_ = memory_->objects().frames();
}

}  // namespace vosrt
