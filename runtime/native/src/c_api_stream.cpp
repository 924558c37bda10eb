// The C boundary of models and streams.
#include <memory>
#include <optional>

#include "c_api.hpp"
#include "session.hpp"
#include "stream.hpp"

struct vosrt_model {
    std::shared_ptr<const vosrt::Model> model;
};
struct vosrt_stream {
    vosrt::Stream stream;
};

namespace {

using vosrt::guarded;
using vosrt::read_struct;
using vosrt::require;

vosrt::Picture picture_of(const vosrt_image *image, const char *name) {
    return vosrt::to_picture(read_struct(image, name), name);
}

std::unique_ptr<vosrt_stream> open(const vosrt_model *model, const vosrt_stream_options *options) {
    require(model, "model");
    const vosrt_stream_options given = options ? read_struct(options, "options") : vosrt_stream_options{};
    return std::unique_ptr<vosrt_stream>(new vosrt_stream{vosrt::Stream(model->model, given)});
}

void finish(vosrt_stream &stream, vosrt_result *result) {
    stream.stream.finish_call();
    if (result != nullptr) vosrt::write_struct(stream.stream.result(), result, "result");
}

}  // namespace

extern "C" {

vosrt_status vosrt_model_create(const vosrt_model_options *options, const vosrt_engine *engine, vosrt_model **model) {
    return guarded([&] {
        require(model, "model");
        *model = nullptr;
        const vosrt_model_options given = read_struct(options, "options");
        auto created = std::make_unique<vosrt_model>();
        created->model = std::make_shared<const vosrt::Model>(given, read_struct(engine, "engine"));
        *model = created.release();
    });
}

void vosrt_model_destroy(vosrt_model *model) { delete model; }

const char *vosrt_model_describe(const vosrt_model *model) {
    return model == nullptr ? "" : model->model->description().c_str();
}

vosrt_status vosrt_stream_create(const vosrt_model *model, const vosrt_stream_options *options, vosrt_stream **stream) {
    return guarded([&] {
        require(stream, "stream");
        *stream = nullptr;
        *stream = open(model, options).release();
    });
}

void vosrt_stream_destroy(vosrt_stream *stream) { delete stream; }

vosrt_status vosrt_stream_step(vosrt_stream *stream, const vosrt_image *frame, const vosrt_image *mask,
                               vosrt_result *result) {
    return guarded([&] {
        require(stream, "stream");
        if (result != nullptr) vosrt::check_struct_size(result, "result");
        std::optional<vosrt::Picture> marks;
        if (mask != nullptr) marks = picture_of(mask, "mask");
        stream->stream.step(picture_of(frame, "frame"), marks);
        finish(*stream, result);
    });
}

vosrt_status vosrt_stream_add(vosrt_stream *stream, const vosrt_image *mask, vosrt_result *result) {
    return guarded([&] {
        require(stream, "stream");
        if (result != nullptr) vosrt::check_struct_size(result, "result");
        stream->stream.add(picture_of(mask, "mask"));
        finish(*stream, result);
    });
}

vosrt_status vosrt_stream_remove(vosrt_stream *stream, int32_t object_id) {
    return guarded([&] {
        require(stream, "stream");
        stream->stream.remove(object_id);
    });
}

vosrt_status vosrt_stream_result(vosrt_stream *stream, vosrt_result *result) {
    return guarded([&] {
        require(stream, "stream");
        vosrt::check_struct_size(result, "result");
        vosrt::write_struct(stream->stream.result(), result, "result");
    });
}

vosrt_status vosrt_stream_copy_labels(const vosrt_stream *stream, uint8_t *labels, int64_t stride) {
    return guarded([&] {
        require(stream, "stream");
        require(labels, "labels");
        stream->stream.copy_labels(labels, stride);
    });
}

vosrt_status vosrt_stream_memory(vosrt_stream *stream, vosrt_memory **memory) {
    return guarded([&] {
        require(stream, "stream");
        require(memory, "memory");
        *memory = stream->stream.memory();
    });
}

vosrt_status vosrt_stream_save(const vosrt_stream *stream, uint8_t *buffer, size_t capacity, size_t *size) {
    return guarded([&] {
        require(stream, "stream");
        require(size, "size");
        const vosrt_session session = stream->stream.session();
        const vosrt::Memory &memory = stream->stream.saved_memory();
        *size = vosrt::session_size(memory, session);
        vosrt::check_capacity(buffer, capacity, *size);
        vosrt::save_session(memory, session, {buffer, *size});
    });
}

vosrt_status vosrt_stream_load(const vosrt_model *model, const vosrt_stream_options *options, const uint8_t *data,
                               size_t size, vosrt_stream **stream) {
    return guarded([&] {
        require(data, "data");
        require(stream, "stream");
        *stream = nullptr;
        auto loaded = open(model, options);
        loaded->stream.load({data, size});
        *stream = loaded.release();
    });
}

}  // extern "C"
