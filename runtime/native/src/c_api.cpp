// The C boundary: checks what callers hand over, turns exceptions into status codes. No logic lives here.
#include <algorithm>
#include <cstring>
#include <string>

#include "c_api.hpp"
#include "isa.hpp"
#include "resample.hpp"
#include "session.hpp"
#include "values.hpp"

#ifndef VOSRT_VERSION
#error "the build defines VOSRT_VERSION"
#endif
#if defined(__VERSION__)
#define VOSRT_COMPILER __VERSION__
#else
#define VOSRT_COMPILER "unknown"
#endif

namespace {

thread_local char last_error[512] = "";

std::string build_description() {
    std::string paths;
    for (int isa = VOSRT_ISA_GENERIC; isa <= vosrt::kLastIsa; ++isa) {
        const auto path = static_cast<vosrt_isa>(isa);
        paths += std::string(paths.empty() ? "" : ", ") + "\"" + vosrt::isa_name(path) +
                 "\": " + (vosrt::isa_available(path) ? "true" : "false");
    }
    return "{\"version\": \"" VOSRT_VERSION "\", \"abi\": " + std::to_string(VOSRT_ABI_VERSION) +
           ", \"compiler\": \"" VOSRT_COMPILER "\", \"isa\": {" + paths + "}}";
}

}  // namespace

namespace vosrt {

vosrt_status fail(vosrt_status status, const char *text) noexcept {
    vosrt_set_last_error(text);
    return status;
}

}  // namespace vosrt

using vosrt::check_image;
using vosrt::guarded;
using vosrt::invalid;
using vosrt::require;

extern "C" {

uint32_t vosrt_abi_version(void) { return VOSRT_ABI_VERSION; }
const char *vosrt_version(void) { return VOSRT_VERSION; }
const char *vosrt_last_error(void) { return last_error; }

void vosrt_set_last_error(const char *text) {
    const size_t length = text == nullptr ? 0 : std::min(std::strlen(text), sizeof last_error - 1);
    if (length > 0) std::memmove(last_error, text, length);  // the text may be the last error itself
    last_error[length] = '\0';
}

const char *vosrt_describe(void) {
    static const std::string text = build_description();
    return text.c_str();
}

const char *vosrt_isa_name(vosrt_isa isa) { return vosrt::isa_name(isa); }
int vosrt_isa_available(vosrt_isa isa) { return vosrt::isa_available(isa) ? 1 : 0; }

int vosrt_has_int8_dot_products(void) { return vosrt::has_int8_dot_products() ? 1 : 0; }

const char *vosrt_status_name(vosrt_status status) {
    switch (status) {
        case VOSRT_OK: return "ok";
        case VOSRT_INVALID_ARGUMENT: return "invalid argument";
        case VOSRT_UNSUPPORTED: return "unsupported";
        case VOSRT_OUT_OF_MEMORY: return "out of memory";
        case VOSRT_INVALID_MASK: return "invalid mask";
        case VOSRT_INTERNAL: return "internal error";
        case VOSRT_ENGINE_FAILED: return "engine failed";
        case VOSRT_INVALID_BUNDLE: return "invalid bundle";
        case VOSRT_INVALID_SESSION: return "invalid session";
        case VOSRT_BUFFER_TOO_SMALL: return "buffer too small";
        case VOSRT_INVALID_HANDLE: return "invalid handle";
    }
    return "unknown status";
}

vosrt_status vosrt_resize_bgr(const uint8_t *source, int32_t source_height, int32_t source_width,
                              int64_t source_stride, uint8_t *target, int32_t target_height, int32_t target_width,
                              int64_t target_stride) {
    return guarded(__func__, [&] {
        require(source, "source", target, "target");
        check_image(source_height, source_width, source_stride, 3);
        check_image(target_height, target_width, target_stride, 3);
        const vosrt::Picture picture{VOSRT_FORMAT_BGR, source_height, source_width, source, source_stride, nullptr, 0};
        vosrt::FrameScaler().run(picture, target, target_height, target_width, target_stride);
    });
}

vosrt_status vosrt_memory_options_init(vosrt_memory_options *options) {
    return guarded(__func__, [&] { vosrt::write_struct(vosrt::default_memory_options(), options, "options"); });
}

vosrt_status vosrt_load_options_init(vosrt_load_options *options) {
    return guarded(__func__, [&] { vosrt::write_struct(vosrt_load_options{}, options, "options"); });
}

vosrt_status vosrt_memory_create(const vosrt_memory_options *options, vosrt_memory **memory) {
    return guarded(__func__, [&] {
        require(memory, "memory");
        *memory = nullptr;
        *memory = vosrt::make_memory(vosrt::Memory::create(
            vosrt::resolve(vosrt::read_struct(options, "options", vosrt::default_memory_options()))));
    });
}

void vosrt_memory_destroy(vosrt_memory *memory) { vosrt::destroy_handle(memory); }

vosrt_status vosrt_memory_get_info(const vosrt_memory *memory, vosrt_memory_info *info) {
    return guarded(__func__, memory, [&](const auto &at) {
        vosrt_memory_info out{};
        out.isa = at->memory->options().isa;
        out.threads = at->memory->threads();
        out.objects = static_cast<int32_t>(at->memory->objects().ids().size());
        out.references = at->memory->objects().references_in_use();
        out.frames = at->memory->objects().frames();
        out.bytes = at->memory->bytes();
        out.head = at->memory->head();
        out.survivors = at->memory->survivors();
        const vosrt::MemoryOptions &options = at->memory->options();
        out.height = options.height;
        out.width = options.width;
        out.channels = options.channels;
        out.top_k = options.top_k;
        out.parts = options.parts;
        out.align_corners = options.alignment == vosrt::Alignment::corners ? 1 : 0;
        vosrt::write_struct(out, info, "info");
    });
}

vosrt_status vosrt_memory_push(vosrt_memory *memory, const float *embedding) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(embedding, "embedding");
        at->memory->push(embedding);
    });
}

vosrt_status vosrt_memory_annotate(vosrt_memory *memory, const uint8_t *mask, int32_t height, int32_t width,
                                   int64_t stride) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(mask, "mask");
        check_image(height, width, stride, 1);
        at->memory->annotate(mask, height, width, stride);
    });
}

vosrt_status vosrt_memory_remove(vosrt_memory *memory, int32_t object_id) {
    return guarded(__func__, memory, [&](const auto &at) { at->memory->remove(object_id); });
}

vosrt_status vosrt_memory_object_ids(const vosrt_memory *memory, uint8_t *ids, int32_t *count) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(ids, "ids", count, "count");
        const std::span<const uint8_t> all = at->memory->objects().ids();
        std::copy(all.begin(), all.end(), ids);
        *count = static_cast<int32_t>(all.size());
    });
}

vosrt_status vosrt_memory_guide(vosrt_memory *memory, const uint8_t *bgr, int32_t height, int32_t width, int64_t stride) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(bgr, "bgr");
        check_image(height, width, stride, 3);
        at->memory->guide(bgr, height, width, stride);
    });
}

vosrt_status vosrt_memory_labels(vosrt_memory *memory, int32_t height, int32_t width, uint8_t *labels,
                                 float *confidence) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(labels, "labels");
        check_image(height, width, width, 1);
        at->memory->labels(height, width, labels, confidence);
    });
}

vosrt_status vosrt_memory_soft_masks(const vosrt_memory *memory, float *masks) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(masks, "masks");
        at->memory->soft_masks(masks);
    });
}

vosrt_status vosrt_memory_set_soft_masks(vosrt_memory *memory, const float *masks) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(masks, "masks");
        at->memory->set_soft_masks(masks);
    });
}

vosrt_status vosrt_memory_top_k_references(const vosrt_memory *memory, int32_t *references) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(references, "references");
        *references = at->memory->top_k_references();
    });
}

vosrt_status vosrt_memory_top_k(const vosrt_memory *memory, float *similarity, int32_t *frame, int32_t *cell) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(similarity, "similarity", frame, "frame", cell, "cell");
        at->memory->top_k(similarity, frame, cell);
    });
}

vosrt_status vosrt_read_values(const vosrt_values_task *task) {
    return guarded(__func__, [&] {
        const vosrt_values_task known = vosrt::read_struct(task, "task");
        require(known.similarity, "similarity", known.slot, "slot", known.cell, "cell", known.values, "values", known.out, "out");
        vosrt::read_values(known);
    });
}

vosrt_status vosrt_memory_save(const vosrt_memory *memory, const vosrt_session *session, uint8_t *buffer,
                               size_t capacity, size_t *size) {
    return guarded(__func__, memory, [&](const auto &at) {
        require(size, "size");
        const vosrt_session extra = session ? vosrt::read_struct(session, "session") : vosrt_session{};
        *size = vosrt::session_size(*at->memory, extra);
        vosrt::check_capacity(buffer, capacity, *size);
        vosrt::save_session(*at->memory, extra, {buffer, *size});
    });
}

vosrt_status vosrt_memory_load(const uint8_t *data, size_t size, const vosrt_load_options *options,
                               vosrt_memory **memory, vosrt_session *session) {
    return guarded(__func__, [&] {
        require(data, "data", memory, "memory");
        *memory = nullptr;
        const vosrt_load_options wanted = options ? vosrt::read_struct(options, "options") : vosrt_load_options{};
        vosrt::SessionReader reader({data, size});
        auto loaded = reader.read(wanted);
        if (session != nullptr) vosrt::write_struct(reader.session(), session, "session");
        *memory = vosrt::make_memory(std::move(loaded));
    });
}

}  // extern "C"
