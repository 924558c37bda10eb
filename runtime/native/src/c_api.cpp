// The C boundary: checks what callers hand over, turns exceptions into status codes. No logic lives here.
#include <cmath>
#include <memory>
#include <new>
#include <string>

#include "error.hpp"
#include "isa.hpp"
#include "memory.hpp"
#include "vosrt.h"

#ifndef VOSRT_VERSION
#error "the build defines VOSRT_VERSION"
#endif

struct vosrt_memory {
    vosrt::Memory memory;
};

namespace {

using vosrt::invalid;

std::string &last_error() {
    thread_local std::string text;
    return text;
}

vosrt_status fail(vosrt_status status, const char *text) noexcept {
    try {
        last_error() = text;
    } catch (...) {
        last_error().clear();
    }
    return status;
}

template <class Body>
vosrt_status guarded(const Body &body) noexcept {
    try {
        body();
        return VOSRT_OK;
    } catch (const vosrt::Error &error) {
        return fail(error.status(), error.what());
    } catch (const std::bad_alloc &) {
        return fail(VOSRT_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception &error) {
        return fail(VOSRT_INTERNAL, error.what());
    } catch (...) {
        return fail(VOSRT_INTERNAL, "unknown failure");
    }
}

void require(const void *pointer, const char *name) {
    if (pointer == nullptr) invalid(std::string(name) + " is NULL");
}

int32_t within(int32_t value, int32_t low, int32_t high, const char *name) {
    if (value < low || value > high)
        invalid(std::string(name) + " is " + std::to_string(value) + "; expected " + std::to_string(low) + " to " +
                std::to_string(high));
    return value;
}

constexpr int32_t kMaxSide = 65536;
constexpr int64_t kMaxCells = 1 << 22;

void check_image(int32_t height, int32_t width, int64_t stride, int32_t channels) {
    within(height, 1, kMaxSide, "height");
    within(width, 1, kMaxSide, "width");
    if (stride < static_cast<int64_t>(width) * channels)
        invalid("stride is " + std::to_string(stride) + " bytes; expected at least " +
                std::to_string(static_cast<int64_t>(width) * channels));
}

vosrt::MemoryOptions resolve(const vosrt_memory_options &in) {
    // The first public version; later fields are read only where struct_size covers them.
    if (in.struct_size < sizeof(vosrt_memory_options))
        invalid("options.struct_size is " + std::to_string(in.struct_size) + "; expected " +
                std::to_string(sizeof(vosrt_memory_options)));
    vosrt::MemoryOptions out{};
    out.height = within(in.height, 1, kMaxSide, "height");
    out.width = within(in.width, 1, kMaxSide, "width");
    if (static_cast<int64_t>(in.height) * in.width > kMaxCells)
        invalid("the grid has " + std::to_string(static_cast<int64_t>(in.height) * in.width) + " cells; at most " +
                std::to_string(kMaxCells) + " are supported");
    out.channels = within(in.channels, 1, 65536, "channels");
    out.context = in.context == 0 ? 20 : in.context == -1 ? 0 : within(in.context, 1, 1024, "context");
    out.window = within(in.window, VOSRT_WINDOW_CIRCLE, VOSRT_WINDOW_SQUARE, "window");
    out.radius = in.radius == 0.0f ? 12.0f : in.radius;
    if (!(out.radius > 0.0f && out.radius <= 4096.0f))
        invalid("radius is " + std::to_string(in.radius) + "; expected more than 0 and at most 4096 cells");
    out.top_k = in.top_k == 0 ? 10 : within(in.top_k, 1, 64, "top_k");
    out.temperature = in.temperature == 0.0f ? 0.05f : in.temperature;
    if (!(out.temperature >= 1e-4f && out.temperature <= 1e4f))
        invalid("temperature is " + std::to_string(in.temperature) + "; expected 1e-4 to 1e4");
    out.pad_context = in.drop_padding == 0;
    out.global_reference = in.local_reference == 0;
    out.yield_background = in.keep_background == 0;
    within(in.precision, VOSRT_PRECISION_AUTO, VOSRT_PRECISION_BF16, "precision");
    within(in.isa, VOSRT_ISA_AUTO, VOSRT_ISA_AMX_EMULATED, "isa");
    out.isa = vosrt::choose_isa(static_cast<vosrt_isa>(in.isa), static_cast<vosrt_precision>(in.precision));
    out.threads = within(in.threads, 0, 1024, "threads");
    return out;
}

}  // namespace

extern "C" {

uint32_t vosrt_abi_version(void) { return VOSRT_ABI_VERSION; }
const char *vosrt_version(void) { return VOSRT_VERSION; }
const char *vosrt_last_error(void) { return last_error().c_str(); }
const char *vosrt_isa_name(vosrt_isa isa) { return vosrt::isa_name(isa); }
int vosrt_isa_available(vosrt_isa isa) { return vosrt::isa_available(isa) ? 1 : 0; }

const char *vosrt_status_name(vosrt_status status) {
    switch (status) {
        case VOSRT_OK: return "ok";
        case VOSRT_INVALID_ARGUMENT: return "invalid argument";
        case VOSRT_UNSUPPORTED: return "unsupported";
        case VOSRT_OUT_OF_MEMORY: return "out of memory";
        case VOSRT_INVALID_MASK: return "invalid mask";
        case VOSRT_INTERNAL: return "internal error";
    }
    return "unknown status";
}

vosrt_status vosrt_resize_bgr(const uint8_t *source, int32_t source_height, int32_t source_width,
                              int64_t source_stride, uint8_t *target, int32_t target_height, int32_t target_width,
                              int64_t target_stride) {
    return guarded([&] {
        require(source, "source");
        require(target, "target");
        check_image(source_height, source_width, source_stride, 3);
        check_image(target_height, target_width, target_stride, 3);
        vosrt::resize_bgr(source, source_height, source_width, source_stride, target, target_height, target_width,
                          target_stride);
    });
}

vosrt_status vosrt_memory_create(const vosrt_memory_options *options, vosrt_memory **memory) {
    return guarded([&] {
        require(options, "options");
        require(memory, "memory");
        *memory = nullptr;
        *memory = new vosrt_memory{vosrt::Memory(resolve(*options))};
    });
}

void vosrt_memory_destroy(vosrt_memory *memory) { delete memory; }

vosrt_status vosrt_memory_get_info(const vosrt_memory *memory, vosrt_memory_info *info) {
    return guarded([&] {
        require(memory, "memory");
        require(info, "info");
        if (info->struct_size < sizeof(vosrt_memory_info))
            invalid("info.struct_size is " + std::to_string(info->struct_size) + "; expected " +
                    std::to_string(sizeof(vosrt_memory_info)));
        info->isa = memory->memory.isa();
        info->threads = memory->memory.threads();
        info->objects = static_cast<int32_t>(memory->memory.object_ids().size());
        info->references = memory->memory.references();
        info->frames = memory->memory.frames();
        info->bytes = memory->memory.bytes();
    });
}

vosrt_status vosrt_memory_push(vosrt_memory *memory, const float *embedding) {
    return guarded([&] {
        require(memory, "memory");
        require(embedding, "embedding");
        memory->memory.push(embedding);
    });
}

vosrt_status vosrt_memory_annotate(vosrt_memory *memory, const uint8_t *mask, int32_t height, int32_t width,
                                   int64_t stride) {
    return guarded([&] {
        require(memory, "memory");
        require(mask, "mask");
        check_image(height, width, stride, 1);
        memory->memory.annotate(mask, height, width, stride);
    });
}

vosrt_status vosrt_memory_remove(vosrt_memory *memory, int32_t object_id) {
    return guarded([&] {
        require(memory, "memory");
        memory->memory.remove(object_id);
    });
}

vosrt_status vosrt_memory_object_ids(const vosrt_memory *memory, uint8_t *ids, int32_t *count) {
    return guarded([&] {
        require(memory, "memory");
        require(ids, "ids");
        require(count, "count");
        const auto all = memory->memory.object_ids();
        std::copy(all.begin(), all.end(), ids);
        *count = static_cast<int32_t>(all.size());
    });
}

vosrt_status vosrt_memory_labels(vosrt_memory *memory, int32_t height, int32_t width, uint8_t *labels,
                                 float *confidence) {
    return guarded([&] {
        require(memory, "memory");
        require(labels, "labels");
        check_image(height, width, width, 1);
        memory->memory.labels(height, width, labels, confidence);
    });
}

vosrt_status vosrt_memory_soft_masks(const vosrt_memory *memory, float *masks) {
    return guarded([&] {
        require(memory, "memory");
        require(masks, "masks");
        memory->memory.soft_masks(masks);
    });
}

vosrt_status vosrt_memory_set_soft_masks(vosrt_memory *memory, const float *masks) {
    return guarded([&] {
        require(memory, "memory");
        require(masks, "masks");
        memory->memory.set_soft_masks(masks);
    });
}

vosrt_status vosrt_memory_top_k_references(const vosrt_memory *memory, int32_t *references) {
    return guarded([&] {
        require(memory, "memory");
        require(references, "references");
        *references = memory->memory.top_k_references();
    });
}

vosrt_status vosrt_memory_top_k(const vosrt_memory *memory, float *similarity, int32_t *frame, int32_t *cell) {
    return guarded([&] {
        require(memory, "memory");
        require(similarity, "similarity");
        require(frame, "frame");
        require(cell, "cell");
        memory->memory.top_k(similarity, frame, cell);
    });
}

}  // extern "C"
