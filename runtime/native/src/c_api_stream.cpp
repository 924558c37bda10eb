// The C boundary of models and streams.
#include <array>
#include <memory>
#include <optional>
#include <span>

#include "c_api.hpp"
#include "objects.hpp"
#include "presence.hpp"
#include "prompt.hpp"
#include "session.hpp"
#include "stream.hpp"

namespace vosrt {

template <>
struct Behind<vosrt_model> : Object {  // without a lock: any number of threads may use it at once
    static constexpr char kKind[] = "model";

    explicit Behind(std::shared_ptr<const Model> model_) : Object(kKind), model(std::move(model_)) {}
    bool has_threads() const override { return model->has_threads(); }

    const std::shared_ptr<const Model> model;
};

template <>
struct Behind<vosrt_stream> : Object {
    static constexpr char kKind[] = "stream";

    Behind(std::shared_ptr<const Model> model, const vosrt_stream_options &options) : Object(kKind), stream(std::move(model), options) {
        lock = std::make_shared<CallLock>();
    }
    ~Behind() override { drop_handle(reinterpret_cast<uintptr_t>(memory_handle)); }
    bool has_threads() const override { return stream.has_threads(); }

    Stream stream;
    vosrt_memory *memory_handle = nullptr;  // given once it is asked for
};

template <>
struct Behind<vosrt_prompt> : Object {
    static constexpr char kKind[] = "prompt";

    Behind(const vosrt_embedding &frame, int32_t cell, const vosrt_prompt_options &options) : Object(kKind), prompt(frame, cell, options) {
        lock = std::make_shared<CallLock>();
    }

    Prompt prompt;
};

}  // namespace vosrt

namespace {

using vosrt::Call;
using vosrt::guarded;
using vosrt::read_struct;
using vosrt::require;
using StreamObject = vosrt::Behind<vosrt_stream>;

vosrt::Picture picture_of(const vosrt_image *image, const char *name) {
    return vosrt::to_picture(read_struct(image, name), name);
}

std::shared_ptr<StreamObject> open(const vosrt_model *model, const vosrt_stream_options *options) {
    const Call of(model);
    return std::make_shared<StreamObject>(of->model, options ? read_struct(options, "options") : vosrt_stream_options{});
}

// Measures objects of dense labels with `measure`, into the caller's array.
template <class Measure>
void write_objects(const vosrt::LabelMap &map, const uint8_t *ids, int32_t count, vosrt_object *objects, const Measure &measure) {
    require(map.labels, "labels");
    vosrt::check_image(map.height, map.width, map.width, 1);
    vosrt::within(count, 0, 255, "count");
    if (count == 0) return;
    require(ids, "ids", objects, "objects");
    vosrt::check_struct_size(objects, "objects[0]");
    std::array<vosrt_object, 255> measured;
    measure(map, std::span{ids, static_cast<size_t>(count)}, measured.data());
    const uint32_t step = objects->struct_size;
    auto *at = reinterpret_cast<unsigned char *>(objects);
    for (int32_t i = 0; i < count; ++i, at += step) {
        auto *object = reinterpret_cast<vosrt_object *>(at);
        object->struct_size = step;
        vosrt::write_struct(measured[static_cast<size_t>(i)], object, "object");
    }
}

void open(const vosrt_embedding &frame, int32_t cell, const vosrt_prompt_options &options, vosrt_prompt **prompt) {
    const auto side = [](int32_t value, const char *name) { vosrt::within(value, 1, vosrt::kMaxSide, name); };
    side(frame.frame_height, "frame.frame_height"), side(frame.frame_width, "frame.frame_width");
    side(frame.height, "frame.height"), side(frame.width, "frame.width");
    side(frame.grid_height, "frame.grid_height"), side(frame.grid_width, "frame.grid_width");
    side(frame.channels, "frame.channels");
    vosrt::within(cell, 2, 1024, "cell");
    vosrt::within(options.dimensions, 1, 256, "options.dimensions");
    require(frame.array, "frame.array", frame.bgr, "frame.bgr");
    *prompt = vosrt::make_handle<vosrt_prompt>(std::make_shared<vosrt::Behind<vosrt_prompt>>(frame, cell, options));
}

void finish(vosrt::Stream &stream, vosrt_result *result) {
    stream.finish_call();
    if (result != nullptr) vosrt::write_struct(stream.result(), result, "result");
}

}  // namespace

extern "C" {

vosrt_status vosrt_model_options_init(vosrt_model_options *options) {
    return guarded(__func__, [&] { vosrt::write_struct(vosrt::default_model_options(), options, "options"); });
}

vosrt_status vosrt_stream_options_init(vosrt_stream_options *options) {
    return guarded(__func__, [&] { vosrt::write_struct(vosrt_stream_options{}, options, "options"); });
}

vosrt_status vosrt_model_create(const vosrt_model_options *options, const vosrt_engine *engine, vosrt_model **model) {
    return guarded(__func__, [&] {
        require(model, "model");
        *model = nullptr;
        const vosrt_model_options given = read_struct(options, "options", vosrt::default_model_options());
        const auto created = std::make_shared<const vosrt::Model>(given, read_struct(engine, "engine"));
        *model = vosrt::make_handle<vosrt_model>(std::make_shared<vosrt::Behind<vosrt_model>>(created));
    });
}

void vosrt_model_destroy(vosrt_model *model) { vosrt::destroy_handle(model); }

const char *vosrt_model_describe(const vosrt_model *model) {
    const char *text = "";
    if (model != nullptr) guarded(__func__, [&] { text = Call(model)->model->description().c_str(); });
    return text;
}

vosrt_status vosrt_stream_create(const vosrt_model *model, const vosrt_stream_options *options, vosrt_stream **stream) {
    return guarded(__func__, [&] {
        require(stream, "stream");
        *stream = nullptr;
        *stream = vosrt::make_handle<vosrt_stream>(open(model, options));
    });
}

void vosrt_stream_destroy(vosrt_stream *stream) { vosrt::destroy_handle(stream); }

vosrt_status vosrt_stream_step(vosrt_stream *stream, const vosrt_image *frame, const vosrt_image *mask,
                               vosrt_result *result) {
    return guarded(__func__, stream, [&](const auto &at) {
        if (result != nullptr) vosrt::check_struct_size(result, "result");
        std::optional<vosrt::Picture> marks;
        if (mask != nullptr) marks = picture_of(mask, "mask");
        at->stream.step(picture_of(frame, "frame"), marks);
        finish(at->stream, result);
    });
}

vosrt_status vosrt_stream_take(vosrt_stream *stream, const vosrt_embedding *embedding, const vosrt_image *mask,
                               vosrt_result *result) {
    return guarded(__func__, stream, [&](const auto &at) {
        if (result != nullptr) vosrt::check_struct_size(result, "result");
        const vosrt_embedding given = read_struct(embedding, "embedding");
        require(given.array, "embedding.array");
        std::optional<vosrt::Picture> marks;
        if (mask != nullptr) marks = picture_of(mask, "mask");
        at->stream.take(given, marks);
        finish(at->stream, result);
    });
}

vosrt_status vosrt_stream_add(vosrt_stream *stream, const vosrt_image *mask, vosrt_result *result) {
    return guarded(__func__, stream, [&](const auto &at) {
        if (result != nullptr) vosrt::check_struct_size(result, "result");
        at->stream.add(picture_of(mask, "mask"));
        finish(at->stream, result);
    });
}

vosrt_status vosrt_stream_remove(vosrt_stream *stream, int32_t object_id) {
    return guarded(__func__, stream, [&](const auto &at) { at->stream.remove(object_id); });
}

vosrt_status vosrt_stream_result(vosrt_stream *stream, vosrt_result *result) {
    return guarded(__func__, stream, [&](const auto &at) {
        vosrt::check_struct_size(result, "result");
        vosrt::write_struct(at->stream.result(), result, "result");
    });
}

vosrt_status vosrt_measure_objects(const uint8_t *labels, const float *confidence, int32_t height, int32_t width,
                                   const uint8_t *ids, int32_t count, vosrt_object *objects) {
    return guarded(__func__, [&] { write_objects({height, width, labels, confidence}, ids, count, objects, vosrt::measure_objects); });
}

vosrt_status vosrt_stream_expect(vosrt_stream *stream, const vosrt_embedding *embedding) {
    return guarded(__func__, stream, [&](const auto &at) { at->stream.expect(read_struct(embedding, "embedding")); });
}

vosrt_status vosrt_stream_refine(vosrt_stream *stream, const vosrt_embedding *embedding) {
    return guarded(__func__, stream, [&](const auto &at) { at->stream.refine(read_struct(embedding, "embedding")); });
}

vosrt_status vosrt_stream_measure(vosrt_stream *stream, int64_t frame, const uint8_t *labels, const float *confidence, int32_t height,
                                  int32_t width, const uint8_t *ids, int32_t count, vosrt_object *objects) {
    return guarded(__func__, stream, [&](const auto &at) {
        write_objects({height, width, labels, confidence}, ids, count, objects,
                      [&](auto &&...task) { at->stream.measure(frame, task...); });
    });
}

vosrt_status vosrt_follow_object(vosrt_presence *presence, int64_t frame, vosrt_object *object) {
    const vosrt_memory_options usual = vosrt::default_memory_options();
    return vosrt_follow_object_with(&usual, presence, frame, object);
}

vosrt_status vosrt_follow_object_with(const vosrt_memory_options *options, vosrt_presence *presence, int64_t frame,
                                      vosrt_object *object) {
    return guarded(__func__, [&] {
        const auto limits = vosrt::presence_options(read_struct(options, "options", vosrt::default_memory_options()));
        vosrt_presence kept = read_struct(presence, "presence");
        vosrt_object measured = read_struct(object, "object");
        vosrt::follow_object(limits, kept, frame, measured);
        vosrt::write_struct(kept, presence, "presence");
        vosrt::write_struct(measured, object, "object");
    });
}

vosrt_status vosrt_stream_copy_labels(const vosrt_stream *stream, uint8_t *labels, int64_t stride) {
    return guarded(__func__, stream, [&](const auto &at) {
        require(labels, "labels");
        at->stream.copy_labels(labels, stride);
    });
}

vosrt_status vosrt_stream_memory(vosrt_stream *stream, vosrt_memory **memory) {
    return guarded(__func__, stream, [&](const auto &at) {
        require(memory, "memory");
        *memory = nullptr;
        const std::shared_ptr<vosrt::Memory> own = at->stream.memory();
        if (own != nullptr && at->memory_handle == nullptr)
            at->memory_handle = vosrt::make_handle<vosrt_memory>(std::make_shared<vosrt::Behind<vosrt_memory>>(own, at->lock));
        *memory = at->memory_handle;
    });
}

vosrt_status vosrt_stream_save(const vosrt_stream *stream, uint8_t *buffer, size_t capacity, size_t *size) {
    return guarded(__func__, stream, [&](const auto &at) {
        require(size, "size");
        const vosrt_session session = at->stream.session();
        vosrt::Memory &memory = at->stream.saved_memory();
        *size = vosrt::session_size(memory, session);
        vosrt::check_capacity(buffer, capacity, *size);
        vosrt::save_session(memory, session, {buffer, *size});
    });
}

vosrt_status vosrt_stream_load(const vosrt_model *model, const vosrt_stream_options *options, const uint8_t *data,
                               size_t size, vosrt_stream **stream) {
    return guarded(__func__, [&] {
        require(data, "data", stream, "stream");
        *stream = nullptr;
        auto loaded = open(model, options);
        loaded->stream.load({data, size});
        *stream = vosrt::make_handle<vosrt_stream>(std::move(loaded));
    });
}

vosrt_status vosrt_prompt_options_init(vosrt_prompt_options *options) {
    return guarded(__func__, [&] { vosrt::write_struct(vosrt::default_prompt_options(), options, "options"); });
}

vosrt_status vosrt_prompt_create(const vosrt_embedding *frame, int32_t cell, const vosrt_prompt_options *options,
                                 vosrt_prompt **prompt) {
    return guarded(__func__, [&] {
        require(prompt, "prompt");
        *prompt = nullptr;
        const vosrt_prompt_options defaults = vosrt::default_prompt_options();
        open(read_struct(frame, "frame"), cell, options ? read_struct(options, "options", defaults) : defaults, prompt);
    });
}

vosrt_status vosrt_prompt_encode(const vosrt_model *model, const vosrt_image *frame, int32_t size, vosrt_prompt **prompt) {
    return guarded(__func__, [&] {
        require(prompt, "prompt");
        *prompt = nullptr;
        const Call of(model);
        const vosrt::Picture picture = picture_of(frame, "frame");
        vosrt::check_size(size);
        if (!of->model->encodes()) vosrt::invalid("this model's engine has no encode; give frames with their embedding to vosrt_prompt_create");
        const vosrt::Size working = of->model->working_size({picture.height, picture.width}, size), grid = of->model->grid(working);
        std::vector<uint8_t> bgr(static_cast<size_t>(working.height) * working.width * 3);
        vosrt::FrameScaler().run(picture, bgr.data(), working.height, working.width, int64_t{3} * working.width);
        vosrt::AlignedBuffer embedding;
        embedding.reserve(static_cast<size_t>(grid.height) * grid.width * of->model->channels() * sizeof(float));
        auto *array = reinterpret_cast<float *>(embedding.data());
        of->model->encode(bgr.data(), working, array, nullptr);
        vosrt_embedding encoded{sizeof(vosrt_embedding), picture.height, picture.width, working.height, working.width, grid.height, grid.width,
                                of->model->channels(), array, bgr.data(), nullptr, 0.0, 0.0};
        open(encoded, of->model->stride(), vosrt::default_prompt_options(), prompt);
    });
}

void vosrt_prompt_destroy(vosrt_prompt *prompt) { vosrt::destroy_handle(prompt); }

vosrt_status vosrt_prompt_segment(vosrt_prompt *prompt, const float *points, int32_t count, const float *box, const vosrt_image *mask,
                                  uint8_t *out) {
    return guarded(__func__, prompt, [&](const auto &at) {
        vosrt::within(count, 0, 4096, "count");
        if (count > 0) require(points, "points");
        require(out, "out");
        std::vector<vosrt::Click> clicks;
        for (int32_t i = 0; i < count; ++i) clicks.push_back({points[3 * i], points[3 * i + 1], points[3 * i + 2] > 0.0f});
        std::optional<vosrt::Box> around;
        if (box != nullptr) around = vosrt::Box{box[0], box[1], box[2], box[3]};
        std::optional<vosrt::Picture> given;
        if (mask != nullptr) {
            given = picture_of(mask, "mask");
            if (given->format != VOSRT_FORMAT_GRAY) vosrt::invalid("mask.format is not VOSRT_FORMAT_GRAY");
        }
        at->prompt.segment(clicks, around, given ? &*given : nullptr, out);
    });
}

}  // extern "C"
