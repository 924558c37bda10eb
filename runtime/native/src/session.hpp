// Sessions: a memory, and what its stream knows besides, as bytes.
//
//     magic "VOSRTSES", version u32, header bytes u32, total bytes u64, SHA-256 of everything behind it
//     model's hash, frame size, flags, propagation options, counters
//     ids of the objects, mean embedding, the mean that centring removes (if it does), references (frame, ids), the guide (of
//     guided output), slots (keys, soft masks): recent ones, then references
//     annotation of the newest frame, if there is one
//
// Little-endian, without padding. Keys are stored in the number format of the path that computed them, without that path's
// row padding, so that any path of the same format can continue.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "error.hpp"
#include "memory.hpp"
#include "vosrt.h"

namespace vosrt {

// Writes to a buffer, or, without one, only counts.
class SessionWriter {
   public:
    explicit SessionWriter(uint8_t *buffer = nullptr) : buffer_(buffer) {}

    void bytes(const void *data, size_t size) {
        if (buffer_ != nullptr && size > 0) std::memcpy(buffer_ + size_, data, size);
        size_ += size;
    }
    template <class T>
    void put(const T &value) {
        static_assert(std::is_arithmetic_v<T>);
        bytes(&value, sizeof value);
    }
    bool counting() const { return buffer_ == nullptr; }
    void skip(size_t size) { size_ += size; }
    size_t size() const { return size_; }

   private:
    uint8_t *buffer_;
    size_t size_ = 0;
};

size_t session_size(Memory &memory, const vosrt_session &session);
// `buffer` has session_size bytes.
void save_session(Memory &memory, const vosrt_session &session, std::span<uint8_t> buffer);

class SessionReader {
   public:
    // Checks hash and header. Throws Error(VOSRT_INVALID_SESSION), also where later reads run past the end.
    explicit SessionReader(std::span<const uint8_t> data);

    // The memory. Its size is checked against the bytes present, its network and its grid against `wanted`, before it is made.
    // Throws Error(VOSRT_UNSUPPORTED) where no path here has its number format.
    std::unique_ptr<Memory> read(const vosrt_load_options &wanted);
    // Points into the data; the annotation is known once the memory was read.
    const vosrt_session &session() const { return session_; }
    // As the session says: nothing but the frame's size and the network's hash has been checked.
    const vosrt_memory_options &options() const { return options_; }

    const uint8_t *bytes(size_t size) {
        if (size > data_.size()) refuse("it ends too early");
        const uint8_t *at = data_.data();
        data_ = data_.subspan(size);
        return at;
    }
    template <class T>
    T get() {
        static_assert(std::is_arithmetic_v<T>);
        T value;
        std::memcpy(&value, bytes(sizeof value), sizeof value);
        return value;
    }
    size_t remaining() const { return data_.size(); }
    [[noreturn]] static void refuse(const std::string &why) {
        throw Error(VOSRT_INVALID_SESSION, "the session cannot be used: " + why);
    }

   private:
    void check_network(const vosrt_load_options &wanted) const;
    MemoryOptions memory_options(const vosrt_load_options &wanted) const;

    std::span<const uint8_t> data_;
    vosrt_memory_options options_ = default_memory_options();
    vosrt_session session_{};
    bool annotated_ = false;
};

}  // namespace vosrt
