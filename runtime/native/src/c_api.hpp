// What the C boundary's translation units share: checks of what callers hand over, exceptions turned into status codes.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "error.hpp"
#include "handle.hpp"
#include "memory.hpp"
#include "vosrt.h"

namespace vosrt {

template <>
struct Behind<vosrt_memory> : Object {
    static constexpr char kKind[] = "memory";

    explicit Behind(std::shared_ptr<Memory> memory_) : Object(kKind), memory(std::move(memory_)) { lock = std::make_shared<CallLock>(); }
    // A stream's: calls on either exclude each other.
    Behind(std::shared_ptr<Memory> memory_, std::shared_ptr<CallLock> of_stream) : Object(kKind), memory(std::move(memory_)) {
        lock = std::move(of_stream);
        owned = true;
    }
    bool has_threads() const override { return memory->has_threads(); }
    bool is_owned() const override { return owned; }

    const std::shared_ptr<Memory> memory;
    bool owned = false;
};

inline vosrt_memory *make_memory(std::shared_ptr<Memory> memory) {
    return make_handle<vosrt_memory>(std::make_shared<Behind<vosrt_memory>>(std::move(memory)));
}

// Bytes of a struct as it was first published: what every caller provides. Never changes, however the struct grows.
template <class T>
constexpr size_t kFirstSize = 0;
template <>
inline constexpr size_t kFirstSize<vosrt_memory_options> = 76;
template <>
inline constexpr size_t kFirstSize<vosrt_memory_info> = 56;
template <>
inline constexpr size_t kFirstSize<vosrt_values_task> = 80;
template <>
inline constexpr size_t kFirstSize<vosrt_session> = 56;
template <>
inline constexpr size_t kFirstSize<vosrt_load_options> = 40;
template <>
inline constexpr size_t kFirstSize<vosrt_bundle_info> = 56;
template <>
inline constexpr size_t kFirstSize<vosrt_engine> = 40;
template <>
inline constexpr size_t kFirstSize<vosrt_model_options> = 72;
template <>
inline constexpr size_t kFirstSize<vosrt_image> = 48;
template <>
inline constexpr size_t kFirstSize<vosrt_object> = 56;
template <>
inline constexpr size_t kFirstSize<vosrt_presence> = 160;
template <>
inline constexpr size_t kFirstSize<vosrt_result> = 88;
template <>
inline constexpr size_t kFirstSize<vosrt_embedding> = 72;
template <>
inline constexpr size_t kFirstSize<vosrt_stream_options> = 40;
template <>
inline constexpr size_t kFirstSize<vosrt_prompt_options> = 96;

vosrt_status fail(vosrt_status status, const char *text) noexcept;

// Runs a public function's body; `name` is for errors of calls that exclude each other.
template <class Body>
vosrt_status guarded(const char *name, const Body &body) noexcept {
    struct Named {
        explicit Named(const char *name) : outer(std::exchange(current_call, name)) {}
        ~Named() { current_call = outer; }
        const char *const outer;
    } const named(name);
    try {
        body();
        return VOSRT_OK;
    } catch (const Error &error) {
        return fail(error.status(), error.what());
    } catch (const std::bad_alloc &) {
        return fail(VOSRT_OUT_OF_MEMORY, "out of memory");
    } catch (const std::length_error &) {
        return fail(VOSRT_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception &error) {
        return fail(VOSRT_INTERNAL, error.what());
    } catch (...) {
        return fail(VOSRT_INTERNAL, "unknown failure");
    }
}

// The same for a function of one handle, which `body` is given as its Call.
template <class Handle, class Body>
vosrt_status guarded(const char *name, Handle *handle, const Body &body) noexcept {
    return guarded(name, [&] { body(Call(handle)); });
}

// Pointers, each with its name.
template <class... More>
void require(const void *pointer, const char *name, More... more) {
    if (pointer == nullptr) invalid(std::string(name) + " is NULL");
    if constexpr (sizeof...(more) > 0) require(more...);
}

template <class T>
uint32_t check_struct_size(const T *given, const char *name) {
    static_assert(kFirstSize<T> > 0 && kFirstSize<T> <= sizeof(T));
    constexpr size_t kLargest = 1024;  // more than any struct will ever have: a size that was never set does not make us read on
    require(given, name);
    uint32_t size;
    std::memcpy(&size, given, sizeof size);  // a struct that has grown by 8-byte fields may lie where 4-byte ones did
    if (size < kFirstSize<T> || size > kLargest)
        invalid(std::string(name) + ".struct_size is " + std::to_string(size) + "; expected " + std::to_string(sizeof(T)));
    return size;
}

// A caller's struct as this version knows it: fields that the caller does not have yet are those of `out`; a newer caller's may
// not ask for anything.
template <class T>
T read_struct(const T *given, const char *name, T out = {}) {
    const size_t size = check_struct_size(given, name);
    const auto *bytes = reinterpret_cast<const unsigned char *>(given);
    for (size_t i = sizeof(T); i < size; ++i)
        if (bytes[i] != 0)
            throw Error(VOSRT_UNSUPPORTED, std::string(name) + " sets a field that this libvosrt does not know; upgrade it");
    std::memcpy(&out, given, std::min(size, sizeof(T)));
    return out;
}

// Fill in as much of the caller's struct as the caller has.
template <class T>
void write_struct(const T &value, T *given, const char *name) {
    const uint32_t size = check_struct_size(given, name);
    std::memcpy(given, &value, std::min<size_t>(size, sizeof(T)));
    std::memcpy(given, &size, sizeof size);
}

inline void check_capacity(const uint8_t *buffer, size_t capacity, size_t size) {
    if (capacity < size)
        throw Error(VOSRT_BUFFER_TOO_SMALL, "the buffer has " + std::to_string(capacity) + " bytes; " +
                                                std::to_string(size) + " are needed");
    require(buffer, "buffer");
}

inline void check_image(int32_t height, int32_t width, int64_t stride, int32_t channels) {
    within(height, 1, kMaxSide, "height");
    within(width, 1, kMaxSide, "width");
    const int64_t row = static_cast<int64_t>(width) * channels;
    if (stride < row || stride > kMaxStride)
        invalid("stride is " + std::to_string(stride) + " bytes; expected at least " + std::to_string(row) + ", and at most " +
                std::to_string(kMaxStride));
}

}  // namespace vosrt
