// vosrt.hpp - C++17 over the C interface of libvosrt: objects that clean up after themselves, views instead of pointers.
//
//     auto bundle = vosrt::Bundle::open("bundle").value();
//     auto model = vosrt::Model::create(bundle, std::make_unique<MyEngine>()).value();   // or vosrt_openvino.hpp
//     auto stream = vosrt::Stream::open(model).value();
//     stream.step(vosrt::bgr(pixels, height, width), vosrt::mask(ids, height, width)).value();
//     while (read(pixels)) {
//         auto frame = stream.step(vosrt::bgr(pixels, height, width)).value();
//         for (int y = 0; y < frame.labels.height(); ++y) draw(frame.labels.row(y));     // valid until the next step
//     }
//
// Everything that can fail returns an Expected: test it, or take its value(), which throws vosrt::Exception; without exceptions
// (-fno-exceptions) value() of a failure prints it and aborts. Ownership, threads and lifetimes are as in vosrt.h. Header only, no
// dependency but libvosrt.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "vosrt.h"

#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define VOSRT_HAS_EXCEPTIONS 1
#else
#define VOSRT_HAS_EXCEPTIONS 0
#endif

namespace vosrt {
inline namespace abi2 {  // apart from the library's own names, which a static libvosrt brings into the program

struct Error {
    vosrt_status status;
    std::string text;  // one line: what was given, what was expected, what to do
};

#if VOSRT_HAS_EXCEPTIONS
class Exception : public std::runtime_error {
   public:
    explicit Exception(const Error &error) : std::runtime_error(error.text), status(error.status) {}
    vosrt_status status;
};
#endif

[[noreturn]] inline void raise(const Error &error) {
#if VOSRT_HAS_EXCEPTIONS
    throw Exception(error);
#else
    std::fprintf(stderr, "vosrt: %s\n", error.text.c_str());
    std::abort();
#endif
}

// A value or an error.
template <class T>
class [[nodiscard]] Expected {
   public:
    Expected(T value) : held_(std::move(value)) {}
    Expected(Error error) : held_(std::move(error)) {}

    explicit operator bool() const { return held_.index() == 0; }
    const Error &error() const { return *std::get_if<1>(&held_); }  // only where there is no value
    T value() && { return std::move(get()); }
    T &value() & { return get(); }
    T *operator->() { return &get(); }

   private:
    T &get() {
        if (T *value = std::get_if<0>(&held_)) return *value;
        raise(error());
    }
    std::variant<T, Error> held_;
};

using Status = Expected<std::monostate>;

inline Error last_error(vosrt_status status) { return {status, vosrt_last_error()}; }
inline Status to_status(vosrt_status status) {
    if (status != VOSRT_OK) return last_error(status);
    return std::monostate{};
}

// A view of elements that someone else owns; converts to std::span where there is one.
template <class T>
class View {
   public:
    View() = default;
    View(T *data, size_t size) : data_(data), size_(size) {}
    T *data() const { return data_; }
    size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T *begin() const { return data_; }
    T *end() const { return data_ + size_; }
    T &operator[](size_t i) const { return data_[i]; }

   private:
    T *data_ = nullptr;
    size_t size_ = 0;
};

// A dense picture of one value per pixel.
template <class T>
class Plane {
   public:
    Plane() = default;
    Plane(T *data, int32_t height, int32_t width) : data_(data), height_(height), width_(width) {}
    int32_t height() const { return height_; }
    int32_t width() const { return width_; }
    View<T> row(int32_t y) const { return {data_ + static_cast<ptrdiff_t>(y) * width_, static_cast<size_t>(width_)}; }
    View<T> all() const { return {data_, static_cast<size_t>(height_) * static_cast<size_t>(width_)}; }
    T &operator()(int32_t y, int32_t x) const { return data_[static_cast<ptrdiff_t>(y) * width_ + x]; }

   private:
    T *data_ = nullptr;
    int32_t height_ = 0, width_ = 0;
};

// Views of the caller's pixels; stride in bytes, 0 = dense. See vosrt_image for formats and NV12.
inline vosrt_image image(vosrt_pixel_format format, const uint8_t *data, int32_t height, int32_t width,
                         int64_t stride = 0) {
    vosrt_image out{};
    out.struct_size = sizeof out;
    out.format = format;
    out.height = height;
    out.width = width;
    out.data = data;
    out.stride = stride;
    return out;
}
inline vosrt_image bgr(const uint8_t *data, int32_t height, int32_t width, int64_t stride = 0) {
    return image(VOSRT_FORMAT_BGR, data, height, width, stride);
}
inline vosrt_image mask(const uint8_t *ids, int32_t height, int32_t width, int64_t stride = 0) {
    return image(VOSRT_FORMAT_GRAY, ids, height, width, stride);
}

// Options with their defaults filled in.
template <class Options>
Options initialised(vosrt_status (*init)(Options *)) {
    Options out{};
    out.struct_size = sizeof out;
    init(&out);
    return out;
}
inline vosrt_memory_options memory_options() { return initialised(vosrt_memory_options_init); }
inline vosrt_model_options model_options() { return initialised(vosrt_model_options_init); }
inline vosrt_stream_options stream_options() { return initialised(vosrt_stream_options_init); }
inline vosrt_load_options load_options() { return initialised(vosrt_load_options_init); }

// The objects of a frame, by ascending id. The library that runs may know more of each than this program was compiled with.
class Objects {
   public:
    Objects() = default;
    Objects(const vosrt_object *first, size_t size) : first_(first), size_(size) {}
    size_t size() const { return size_; }
    const vosrt_object &operator[](size_t i) const {
        return *reinterpret_cast<const vosrt_object *>(reinterpret_cast<const char *>(first_) + i * first_->struct_size);
    }
    // By pixels alone where libvosrt is older than vosrt_object.state.
    vosrt_state state(size_t i) const {
        const vosrt_object &object = (*this)[i];
        if (object.struct_size >= offsetof(vosrt_object, state) + sizeof object.state) return static_cast<vosrt_state>(object.state);
        return object.present != 0 ? VOSRT_STATE_PRESENT : VOSRT_STATE_LOST;
    }

   private:
    const vosrt_object *first_ = nullptr;
    size_t size_ = 0;
};

// What one frame gives; views are valid until the stream's next call.
struct Frame {
    int64_t index;
    Plane<const uint8_t> labels;  // 0 is background, else an object id
    Plane<const float> confidence;
    View<const uint8_t> object_ids;
    View<const float> object_confidence;
    Objects objects;  // none where libvosrt is older than this header
    double resize_ms, encode_ms, match_ms, labels_ms, refine_ms;

    explicit Frame(const vosrt_result &result)
        : index(result.index),
          labels(result.labels, result.height, result.width),
          confidence(result.confidence, result.height, result.width),
          object_ids(result.object_ids, static_cast<size_t>(result.object_count)),
          object_confidence(result.object_confidence, static_cast<size_t>(result.object_count)),
          objects(result.objects, result.objects == nullptr ? 0 : static_cast<size_t>(result.object_count)),
          resize_ms(result.resize_ms),
          encode_ms(result.encode_ms),
          match_ms(result.match_ms),
          labels_ms(result.labels_ms),
          refine_ms(result.refine_ms) {}
};

class Bundle {
   public:
    static Expected<Bundle> open(const std::string &path) {
        vosrt_bundle *handle = nullptr;
        if (const vosrt_status status = vosrt_bundle_open(path.c_str(), &handle)) return last_error(status);
        return Bundle(handle);
    }
    vosrt_bundle_info info() const {  // text valid as long as the bundle
        vosrt_bundle_info out{};
        out.struct_size = sizeof out;
        vosrt_bundle_get_info(handle_.get(), &out);
        return out;
    }
    vosrt_model_options model_options() const {  // points into the bundle
        vosrt_model_options out = vosrt::model_options();
        vosrt_bundle_model_options(handle_.get(), &out);
        return out;
    }
    Expected<std::string> graph_path(const std::string &graph = "encoder") const {
        const char *path = nullptr;
        if (const vosrt_status status = vosrt_bundle_graph_path(handle_.get(), graph.c_str(), &path)) return last_error(status);
        return std::string(path);
    }
    // As it was checked, for an engine; valid as long as the bundle.
    Expected<std::string_view> graph_content(const std::string &graph = "encoder") const {
        const uint8_t *bytes = nullptr;
        size_t size = 0;
        if (const vosrt_status status = vosrt_bundle_graph_content(handle_.get(), graph.c_str(), &bytes, &size))
            return last_error(status);
        return std::string_view(reinterpret_cast<const char *>(bytes), size);
    }
    // The role of the encoder's graph in a precision: "int8" is the one that is quantised so, or an error where the bundle
    // carries none; "auto" is that one where the bundle carries it and the processor multiplies in int8; else "encoder".
    Expected<std::string> encoder_role(const std::string &precision) const {
        if (precision == "int8" || (precision == "auto" && vosrt_has_int8_dot_products() != 0)) {
            auto quantised = graph_content("encoder_int8");
            if (quantised) return std::string("encoder_int8");
            if (precision == "int8")
                return Error{VOSRT_INVALID_ARGUMENT, std::string("precision is 'int8', but the bundle ") + info().path +
                                                         " carries no int8 graph; make one with vos-export quantise, or use 'auto'"};
        }
        return std::string("encoder");
    }
    const vosrt_bundle *get() const { return handle_.get(); }

   private:
    explicit Bundle(vosrt_bundle *handle) : handle_(handle) {}
    struct Close {
        void operator()(vosrt_bundle *handle) const { vosrt_bundle_close(handle); }
    };
    std::unique_ptr<vosrt_bundle, Close> handle_;
};

// What runs the network: derive, and hand to a model.
class Engine {
   public:
    virtual ~Engine() = default;
    virtual std::string name() const = 0;
    // Whether the model must keep encode from running in several threads at once.
    virtual bool serial() const { return false; }
    // Whether it has threads of its own, which a fork leaves behind: the model is then refused in a process that forked off.
    virtual bool has_threads() const { return false; }
    // Fill in task.embedding. A failure is the text that the caller of the stream is to see, or an exception; "" is success.
    virtual std::string encode(const vosrt_encode_task &task) = 0;
    // Whether it runs the mask networks too. If so, encode stores in *task.features, where that is not NULL, what they need of the
    // frame, and release frees it.
    virtual bool has_mask_networks() const { return false; }
    // Whether the mask networks take and give arrays on the GPU of libvosrt_cuda's memories: see VOSRT_ENGINE_ON_GPU.
    virtual bool on_gpu() const { return false; }
    virtual std::string encode_masks(const vosrt_encode_masks_task &) { return "this engine has no mask networks"; }
    virtual std::string decode_masks(const vosrt_decode_masks_task &) { return "this engine has no mask networks"; }
    virtual void release(void *) {}
};

class Model {
   public:
    static Expected<Model> create(const vosrt_model_options &options, std::unique_ptr<Engine> engine) {
        const std::string name = engine->name();
        vosrt_engine table{};
        table.struct_size = sizeof table;
        if (engine->serial()) table.flags |= VOSRT_ENGINE_SERIAL;
        if (engine->has_threads()) table.flags |= VOSRT_ENGINE_THREADS;
        if (engine->on_gpu()) table.flags |= VOSRT_ENGINE_ON_GPU;
        table.name = name.c_str();
        table.user = engine.get();
        table.encode = [](void *user, const vosrt_encode_task *task) {
            return run([&] { return static_cast<Engine *>(user)->encode(*task); });
        };
        if (engine->has_mask_networks()) {
            table.encode_masks = [](void *user, const vosrt_encode_masks_task *task) {
                return run([&] { return static_cast<Engine *>(user)->encode_masks(*task); });
            };
            table.decode_masks = [](void *user, const vosrt_decode_masks_task *task) {
                return run([&] { return static_cast<Engine *>(user)->decode_masks(*task); });
            };
            table.release = [](void *user, void *features) { static_cast<Engine *>(user)->release(features); };
        }
        table.destroy = [](void *user) { delete static_cast<Engine *>(user); };
        vosrt_model *handle = nullptr;
        if (const vosrt_status status = vosrt_model_create(&options, &table, &handle)) return last_error(status);
        engine.release();  // the model's now
        return Model(handle);
    }
    static Expected<Model> create(const Bundle &bundle, std::unique_ptr<Engine> engine) {
        return create(bundle.model_options(), std::move(engine));
    }
    std::string describe() const { return vosrt_model_describe(handle_.get()); }
    const vosrt_model *get() const { return handle_.get(); }

   private:
    explicit Model(vosrt_model *handle) : handle_(handle) {}
    template <class Network>
    static vosrt_status run(const Network &network) {
        std::string failure;
#if VOSRT_HAS_EXCEPTIONS
        try {
            failure = network();
        } catch (const std::exception &error) {
            failure = *error.what() ? error.what() : "the engine threw an exception without a text";
        } catch (...) {
            failure = "the engine threw something that is no exception";
        }
#else
        failure = network();
#endif
        if (failure.empty()) return VOSRT_OK;
        vosrt_set_last_error(failure.c_str());
        return VOSRT_ENGINE_FAILED;
    }
    struct Destroy {
        void operator()(vosrt_model *handle) const { vosrt_model_destroy(handle); }
    };
    std::unique_ptr<vosrt_model, Destroy> handle_;
};

class Stream {
   public:
    static Expected<Stream> open(const Model &model, const vosrt_stream_options *options = nullptr) {
        vosrt_stream *handle = nullptr;
        if (const vosrt_status status = vosrt_stream_create(model.get(), options, &handle)) return last_error(status);
        return Stream(handle);
    }
    static Expected<Stream> load(const Model &model, View<const uint8_t> session,
                                 const vosrt_stream_options *options = nullptr) {
        vosrt_stream *handle = nullptr;
        if (const vosrt_status status = vosrt_stream_load(model.get(), options, session.data(), session.size(), &handle))
            return last_error(status);
        return Stream(handle);
    }
    Expected<Frame> step(const vosrt_image &frame) {
        return finished([&](vosrt_result *out) { return vosrt_stream_step(handle_.get(), &frame, nullptr, out); });
    }
    Expected<Frame> step(const vosrt_image &frame, const vosrt_image &mask) {
        return finished([&](vosrt_result *out) { return vosrt_stream_step(handle_.get(), &frame, &mask, out); });
    }
    // A frame that was encoded already; `mask` may be nullptr.
    Expected<Frame> take(const vosrt_embedding &embedding, const vosrt_image *mask = nullptr) {
        return finished([&](vosrt_result *out) { return vosrt_stream_take(handle_.get(), &embedding, mask, out); });
    }
    Expected<Frame> add(const vosrt_image &mask) {
        return finished([&](vosrt_result *out) { return vosrt_stream_add(handle_.get(), &mask, out); });
    }
    Expected<Frame> result() {
        return finished([&](vosrt_result *out) { return vosrt_stream_result(handle_.get(), out); });
    }
    Status remove(int32_t object_id) { return to_status(vosrt_stream_remove(handle_.get(), object_id)); }
    Status copy_labels(uint8_t *labels, int64_t stride) const {
        return to_status(vosrt_stream_copy_labels(handle_.get(), labels, stride));
    }
    Expected<std::vector<uint8_t>> save() const {
        size_t size = 0;
        vosrt_status status = vosrt_stream_save(handle_.get(), nullptr, 0, &size);
        if (status != VOSRT_BUFFER_TOO_SMALL) return last_error(status);
        std::vector<uint8_t> out(size);
        status = vosrt_stream_save(handle_.get(), out.data(), out.size(), &size);
        if (status != VOSRT_OK) return last_error(status);
        return out;
    }
    vosrt_stream *get() const { return handle_.get(); }

   private:
    explicit Stream(vosrt_stream *handle) : handle_(handle) {}
    template <class Call>
    Expected<Frame> finished(const Call &call) {
        vosrt_result result{};
        result.struct_size = sizeof result;
        if (const vosrt_status status = call(&result)) return last_error(status);
        return Frame(result);
    }
    struct Destroy {
        void operator()(vosrt_stream *handle) const { vosrt_stream_destroy(handle); }
    };
    std::unique_ptr<vosrt_stream, Destroy> handle_;
};

// A frame that was encoded, ready for clicks; see vosrt_prompt.
class Prompt {
   public:
    struct Point {
        float x, y;  // pixels
        bool positive = true;
    };
    struct Box {
        float x, y, width, height;  // pixels
    };

    static Expected<Prompt> encode(const Model &model, const vosrt_image &frame, int32_t size = VOSRT_SIZE_DEFAULT) {
        vosrt_prompt *handle = nullptr;
        if (const vosrt_status status = vosrt_prompt_encode(model.get(), &frame, size, &handle)) return last_error(status);
        return Prompt(handle, static_cast<size_t>(frame.height) * static_cast<size_t>(frame.width));
    }
    // u8 [height * width], 1 for the object; `box` and `mask`, which is corrected, may be nullptr.
    Expected<std::vector<uint8_t>> segment(const std::vector<Point> &points, const Box *box = nullptr, const vosrt_image *mask = nullptr) {
        std::vector<float> values;
        for (const Point &each : points) values.insert(values.end(), {each.x, each.y, each.positive ? 1.0f : 0.0f});
        float sides[4] = {};
        if (box != nullptr) sides[0] = box->x, sides[1] = box->y, sides[2] = box->width, sides[3] = box->height;
        std::vector<uint8_t> out(pixels_);
        if (const vosrt_status status = vosrt_prompt_segment(handle_.get(), values.data(), static_cast<int32_t>(points.size()),
                                                             box != nullptr ? sides : nullptr, mask, out.data()))
            return last_error(status);
        return out;
    }
    vosrt_prompt *get() const { return handle_.get(); }

   private:
    Prompt(vosrt_prompt *handle, size_t pixels) : handle_(handle), pixels_(pixels) {}
    struct Destroy {
        void operator()(vosrt_prompt *handle) const { vosrt_prompt_destroy(handle); }
    };
    std::unique_ptr<vosrt_prompt, Destroy> handle_;
    size_t pixels_;
};

}  // namespace abi2
}  // namespace vosrt
