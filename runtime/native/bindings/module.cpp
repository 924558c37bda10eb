// Python binding over the C ABI: checks arrays, releases the GIL, turns status codes into vosrt's exceptions. No logic.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vosrt.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<nb::ro>;
using Shape = std::vector<size_t>;

[[noreturn]] void raise(const char *type, const std::string &text) {
    PyErr_SetString(nb::module_::import_("vosrt.errors").attr(type).ptr(), text.c_str());
    throw nb::python_error();
}

void check(vosrt_status status) {
    switch (status) {
        case VOSRT_OK: return;
        case VOSRT_INVALID_MASK: raise("MaskError", vosrt_last_error());
        case VOSRT_INVALID_SESSION: raise("SessionError", vosrt_last_error());
        case VOSRT_INVALID_ARGUMENT:
        case VOSRT_UNSUPPORTED: raise("OptionError", vosrt_last_error());
        default: raise("WorkError", vosrt_last_error());
    }
}

template <class Call>
void run(const Call &call) {
    vosrt_status status;
    {
        const nb::gil_scoped_release release;
        status = call();
    }
    check(status);
}

std::string text_of(const char *type, const Shape &shape) {
    std::string text = std::string(type) + " [";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

std::string text_of(const Array &array) {
    Shape shape;
    for (size_t i = 0; i < array.ndim(); ++i) shape.push_back(array.shape(i));
    const auto type = array.dtype();
    const char *kinds[] = {"int", "uint", "float"};
    const std::string name = type.code <= 2 ? kinds[type.code] + std::to_string(type.bits) : "other type";
    return text_of(name.c_str(), shape);
}

// The data of an array in host memory with this element type and shape (0 = any size) and dense rows.
template <class T>
const T *data_of(const Array &array, const char *name, const Shape &shape) {
    bool fits = array.dtype() == nb::dtype<T>() && array.ndim() == shape.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] == 0 || array.shape(i) == shape[i];
    const char *type = std::is_same_v<T, float> ? "float32" : std::is_same_v<T, int32_t> ? "int32" : "uint8";
    if (!fits) raise("OptionError", std::string(name) + " is " + text_of(array) + "; expected " + text_of(type, shape));
    if (array.device_type() != nb::device::cpu::value)
        raise("OptionError", std::string(name) + " is on another device; expected an array in host memory");
    int64_t dense = 1;
    for (size_t i = array.ndim(); i-- > 0; dense *= static_cast<int64_t>(array.shape(i)))
        if (array.shape(i) > 1 && array.stride(i) != dense)
            raise("OptionError", std::string(name) + " has gaps between its elements; pass a contiguous copy");
    return static_cast<const T *>(array.data());
}

template <class T>
std::pair<nb::object, T *> make_array(const Shape &shape) {
    size_t count = 1;
    for (const size_t n : shape) count *= n;
    auto *data = new T[count + 1];
    const nb::capsule owner(data, [](void *memory) noexcept { delete[] static_cast<T *>(memory); });
    return {nb::cast(nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner)), data};
}

template <class T>
T choice(const char *what, const std::string &name, const std::vector<std::pair<const char *, T>> &values) {
    std::string expected;
    for (const auto &[text, value] : values) {
        if (name == text) return value;
        expected += (expected.empty() ? "" : ", ") + std::string(text);
    }
    raise("OptionError", std::string(what) + " is '" + name + "'; expected one of " + expected);
}

vosrt_isa isa_of(const std::string &name) {
    std::vector<std::pair<const char *, vosrt_isa>> values;
    for (int isa = VOSRT_ISA_AUTO; isa <= VOSRT_ISA_AMX_EMULATED; ++isa)
        values.emplace_back(vosrt_isa_name(static_cast<vosrt_isa>(isa)), static_cast<vosrt_isa>(isa));
    return choice("isa", name, values);
}

vosrt_precision precision_of(const std::string &name) {
    return choice<vosrt_precision>(
        "precision", name,
        {{"auto", VOSRT_PRECISION_AUTO}, {"fp32", VOSRT_PRECISION_FP32}, {"bf16", VOSRT_PRECISION_BF16}});
}

class Memory {
   public:
    Memory(int32_t height, int32_t width, int32_t channels, int32_t context, const std::string &window, float radius,
           int32_t top_k, float temperature, bool pad_context, bool global_reference, bool yield_background, bool align_corners,
           const std::string &precision, const std::string &isa, int32_t threads)
        : top_k_(top_k) {
        // The C ABI reads 0 as "the default" and -1 as "no context"; here every value means itself.
        if (context < 0) raise("OptionError", "context is " + std::to_string(context) + "; expected 0 to 1024");
        if (radius == 0.0f) raise("OptionError", "radius is 0; expected more than 0 and at most 4096 cells");
        if (top_k == 0) raise("OptionError", "top_k is 0; expected 1 to 64");
        if (temperature == 0.0f) raise("OptionError", "temperature is 0; expected 1e-4 to 1e4");
        vosrt_memory_options options{};
        options.struct_size = sizeof options;
        options.height = height;
        options.width = width;
        options.channels = channels;
        options.context = context == 0 ? -1 : context;
        options.window =
            choice<vosrt_window>("window", window, {{"circle", VOSRT_WINDOW_CIRCLE}, {"square", VOSRT_WINDOW_SQUARE}});
        options.radius = radius;
        options.top_k = top_k;
        options.temperature = temperature;
        options.drop_padding = pad_context ? 0 : 1;
        options.local_reference = global_reference ? 0 : 1;
        options.keep_background = yield_background ? 0 : 1;
        options.half_pixel = align_corners ? 0 : 1;
        options.precision = precision_of(precision);
        options.isa = isa_of(isa);
        options.threads = threads;
        run([&] { return vosrt_memory_create(&options, &memory_); });
        grid_ = {static_cast<size_t>(height), static_cast<size_t>(width)};
        channels_ = static_cast<size_t>(channels);
    }
    explicit Memory(vosrt_memory *memory) : memory_(memory) {
        const vosrt_memory_info info = read_info();
        grid_ = {static_cast<size_t>(info.height), static_cast<size_t>(info.width)};
        channels_ = static_cast<size_t>(info.channels);
        top_k_ = info.top_k;
    }
    ~Memory() { vosrt_memory_destroy(memory_); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    void push(const Array &embedding) {
        const float *data = data_of<float>(embedding, "embedding", {grid_[0], grid_[1], channels_});
        run([&] { return vosrt_memory_push(memory_, data); });
    }

    void annotate(const Array &mask) {
        const uint8_t *data = data_of<uint8_t>(mask, "mask", {0, 0});
        const auto height = static_cast<int32_t>(mask.shape(0)), width = static_cast<int32_t>(mask.shape(1));
        run([&] { return vosrt_memory_annotate(memory_, data, height, width, width); });
    }

    void remove(int32_t object_id) {
        run([&] { return vosrt_memory_remove(memory_, object_id); });
    }

    nb::tuple labels(int32_t height, int32_t width) {
        const Shape shape = {static_cast<size_t>(std::max(height, 0)), static_cast<size_t>(std::max(width, 0))};
        auto [labels, label_data] = make_array<uint8_t>(shape);
        auto [confidence, confidence_data] = make_array<float>(shape);
        run([&, l = label_data, c = confidence_data] { return vosrt_memory_labels(memory_, height, width, l, c); });
        return nb::make_tuple(labels, confidence);
    }

    nb::object soft_masks() {
        auto [masks, data] = make_array<float>({grid_[0], grid_[1], channel_count()});
        run([&, d = data] { return vosrt_memory_soft_masks(memory_, d); });
        return masks;
    }

    void set_soft_masks(const Array &masks) {
        const float *data = data_of<float>(masks, "soft masks", {grid_[0], grid_[1], channel_count()});
        run([&] { return vosrt_memory_set_soft_masks(memory_, data); });
    }

    nb::object top_k() {
        int32_t references = 0;
        check(vosrt_memory_top_k_references(memory_, &references));
        const Shape shape = {static_cast<size_t>(references), grid_[0] * grid_[1], static_cast<size_t>(top_k_)};
        auto [similarity, s] = make_array<float>(shape);
        auto [frame, f] = make_array<int32_t>(shape);
        auto [cell, c] = make_array<int32_t>(shape);
        run([&, s = s, f = f, c = c] { return vosrt_memory_top_k(memory_, s, f, c); });
        return nb::module_::import_("vosrt.types").attr("TopK")(similarity, frame, cell);
    }

    nb::bytes save(int32_t frame_height, int32_t frame_width, const std::optional<Array> &annotation,
                   const nb::bytes &model) {
        vosrt_session session{};
        session.struct_size = sizeof session;
        session.frame_height = frame_height;
        session.frame_width = frame_width;
        if (annotation)
            session.annotation = data_of<uint8_t>(
                *annotation, "annotation", {static_cast<size_t>(frame_height), static_cast<size_t>(frame_width)});
        if (model.size() != sizeof session.model) raise("OptionError", "model is not a SHA-256; expected 32 bytes");
        std::memcpy(session.model, model.data(), sizeof session.model);
        size_t size = 0;
        if (const vosrt_status status = vosrt_memory_save(memory_, &session, nullptr, 0, &size);
            status != VOSRT_BUFFER_TOO_SMALL)
            check(status);
        auto out = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
        if (!out.is_valid()) throw nb::python_error();
        auto *buffer = reinterpret_cast<uint8_t *>(PyBytes_AsString(out.ptr()));
        run([&] { return vosrt_memory_save(memory_, &session, buffer, size, &size); });
        return out;
    }

    nb::tuple object_ids() const {
        uint8_t ids[255];
        int32_t count = 0;
        check(vosrt_memory_object_ids(memory_, ids, &count));
        nb::list list;
        for (int32_t i = 0; i < count; ++i) list.append(static_cast<int>(ids[i]));
        return nb::tuple(list);
    }

    nb::dict info() const {
        const vosrt_memory_info info = read_info();
        nb::dict out;
        out["isa"] = vosrt_isa_name(static_cast<vosrt_isa>(info.isa));
        out["threads"] = info.threads;
        out["objects"] = info.objects;
        out["references"] = info.references;
        out["frames"] = info.frames;
        out["bytes"] = info.bytes;
        out["shape"] = nb::make_tuple(info.height, info.width, info.channels);
        out["align_corners"] = info.half_pixel == 0;
        return out;
    }

   private:
    vosrt_memory_info read_info() const {
        vosrt_memory_info info{};
        info.struct_size = sizeof info;
        check(vosrt_memory_get_info(memory_, &info));
        return info;
    }
    size_t channel_count() const { return 1 + static_cast<size_t>(read_info().objects); }

    vosrt_memory *memory_ = nullptr;
    int32_t top_k_;
    Shape grid_;
    size_t channels_ = 0;
};

nb::object resize_bgr(const Array &image, int32_t height, int32_t width) {
    const uint8_t *data = data_of<uint8_t>(image, "image", {0, 0, 3});
    const auto rows = static_cast<int32_t>(image.shape(0)), columns = static_cast<int32_t>(image.shape(1));
    auto [out, target] = make_array<uint8_t>(
        {static_cast<size_t>(std::max(height, 0)), static_cast<size_t>(std::max(width, 0)), 3});
    run([&, t = target] {
        return vosrt_resize_bgr(data, rows, columns, int64_t{3} * columns, t, height, width, int64_t{3} * width);
    });
    return out;
}

// V_q of objects that share their neighbours, f32 [objects, n, V].
nb::object read_values(const Array &similarity, const Array &slot, const Array &cell, const std::vector<Array> &values,
                       float temperature, int32_t threads) {
    if (temperature == 0.0f) raise("OptionError", "temperature is 0; expected 1e-4 to 1e4");
    if (values.empty()) raise("OptionError", "values are of no object; expected an array for each of at least one");
    vosrt_values_task task{};
    task.struct_size = sizeof task;
    task.threads = threads;
    task.temperature = temperature;
    task.similarity = data_of<float>(similarity, "similarity", {0, 0});
    const Shape near = {similarity.shape(0), similarity.shape(1)};
    task.slot = data_of<int32_t>(slot, "slot", near);
    task.cell = data_of<int32_t>(cell, "cell", near);
    std::vector<const float *> of_objects{data_of<float>(values[0], "values", {0, 0, 0})};
    const Shape kept = {values[0].shape(0), values[0].shape(1), values[0].shape(2)};
    for (size_t i = 1; i < values.size(); ++i) of_objects.push_back(data_of<float>(values[i], "values", kept));
    task.queries = static_cast<int32_t>(near[0]);
    task.top_k = static_cast<int32_t>(near[1]);
    task.objects = static_cast<int32_t>(values.size());
    task.slots = static_cast<int32_t>(kept[0]);
    task.cells = static_cast<int32_t>(kept[1]);
    task.channels = static_cast<int32_t>(kept[2]);
    task.values = of_objects.data();
    auto [out, target] = make_array<float>({values.size(), near[0], kept[2]});
    task.out = target;
    run([&] { return vosrt_read_values(&task); });
    return out;
}

// The memory of a session, the size of its frames, what was marked in the newest one, and the SHA-256 of its network.
nb::tuple load_session(const nb::bytes &session, const std::string &precision, const std::string &isa, int32_t threads) {
    const vosrt_load_options options{sizeof options, precision_of(precision), isa_of(isa), threads};
    vosrt_session extra{};
    extra.struct_size = sizeof extra;
    vosrt_memory *memory = nullptr;
    const auto *data = static_cast<const uint8_t *>(session.data());
    run([&, size = session.size()] { return vosrt_memory_load(data, size, &options, &memory, &extra); });
    auto owner = std::make_unique<Memory>(memory);
    nb::object annotation = nb::none();
    if (extra.annotation != nullptr) {
        const Shape shape = {static_cast<size_t>(extra.frame_height), static_cast<size_t>(extra.frame_width)};
        auto [array, target] = make_array<uint8_t>(shape);
        std::memcpy(target, extra.annotation, shape[0] * shape[1]);
        annotation = array;
    }
    return nb::make_tuple(nb::cast(owner.release(), nb::rv_policy::take_ownership), extra.frame_height,
                          extra.frame_width, annotation, nb::bytes(extra.model, sizeof extra.model));
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native core of vosrt: the C ABI of libvosrt as Python objects.";
    m.def("version", &vosrt_version, "Version of libvosrt.");
    m.def(
        "isa_available", [](const std::string &name) { return vosrt_isa_available(isa_of(name)) != 0; }, "name"_a,
        "Whether this build and this processor can run an instruction-set path.");
    m.def("resize_bgr", &resize_bgr, "image"_a, "height"_a, "width"_a,
          "Bilinear resize of u8 [H, W, 3] to u8 [height, width, 3]; the same bytes on every processor.");
    m.def("read_values", &read_values, "similarity"_a, "slot"_a, "cell"_a, "values"_a, "temperature"_a, nb::kw_only(),
          "threads"_a = 0, "Values of objects, each f32 [slots, cells, V], read with their neighbours: f32 [objects, n, V].");
    m.def("load_session", &load_session, "session"_a, nb::kw_only(), "precision"_a = "auto", "isa"_a = "auto",
          "threads"_a = 0, "Memory, frame height, frame width, annotation or None, and network of a saved session.");
    nb::class_<Memory>(m, "Memory", "One video's memory; the methods of vosrt.memory.Memory.")
        .def(nb::init<int32_t, int32_t, int32_t, int32_t, const std::string &, float, int32_t, float, bool, bool, bool, bool,
                      const std::string &, const std::string &, int32_t>(),
             "height"_a, "width"_a, "channels"_a, nb::kw_only(), "context"_a = 20, "window"_a = "circle",
             "radius"_a = 12.0f, "top_k"_a = 10, "temperature"_a = 0.05f, "pad_context"_a = true,
             "global_reference"_a = true, "yield_background"_a = true, "align_corners"_a = true,
             "precision"_a = "auto", "isa"_a = "auto", "threads"_a = 0)
        .def("push", &Memory::push, "embedding"_a)
        .def("annotate", &Memory::annotate, "mask"_a)
        .def("remove", &Memory::remove, "object_id"_a)
        .def("labels", &Memory::labels, "height"_a, "width"_a)
        .def("soft_masks", &Memory::soft_masks)
        .def("set_soft_masks", &Memory::set_soft_masks, "masks"_a)
        .def("top_k", &Memory::top_k)
        .def("save", &Memory::save, "frame_height"_a, "frame_width"_a, "annotation"_a.none(), "model"_a)
        .def_prop_ro("object_ids", &Memory::object_ids)
        .def_prop_ro("info", &Memory::info);
}
