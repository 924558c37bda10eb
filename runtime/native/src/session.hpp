// Sessions: a memory, and what its stream knows besides, as bytes.
//
//     magic "VOSRTSES", version u32, header bytes u32, total bytes u64, SHA-256 of everything behind it
//     model's hash, frame size, flags, propagation options, counters
//     ids of the objects, mean embedding, references (frame, ids), slots (keys, soft masks): recent ones, then references
//     annotation of the newest frame, if there is one
//
// Little-endian, without padding. Keys are stored in the number format of the path that computed them, without that path's
// row padding, so that any path of the same format can continue.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
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

size_t session_size(const Memory &memory, const vosrt_session &session);
// `buffer` has session_size bytes.
void save_session(const Memory &memory, const vosrt_session &session, std::span<uint8_t> buffer);

class SessionReader {
   public:
    // Checks hash and header. Throws Error(VOSRT_INVALID_SESSION), also where later reads run past the end.
    explicit SessionReader(std::span<const uint8_t> data);

    // What the memory is to be created with. Throws Error(VOSRT_UNSUPPORTED) where no path here has its number format.
    MemoryOptions memory_options(const vosrt_load_options &wanted, int32_t device = 0) const;
    void read_into(Memory &memory);
    // Points into the data; known after read_into.
    const vosrt_session &session() const { return session_; }
    int32_t channels() const { return options_.channels; }

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
    std::span<const uint8_t> data_;
    vosrt_memory_options options_{};
    vosrt_session session_{};
    bool annotated_ = false;
};

// What a session says of a memory before its slots follow.
struct SessionContents {
    struct Reference {
        int64_t frame;
        std::vector<uint8_t> ids;
    };
    int64_t frames = 0;
    std::vector<uint8_t> ids;  // ascending
    std::vector<float> mean;
    std::vector<Reference> references;  // oldest first

    // Recent frames that a later one may read, and the newest one, whose soft masks are asked for.
    int64_t kept_frames(int32_t context) const { return std::min<int64_t>(frames, std::max(context, 1)); }
    void write(SessionWriter &out) const;
    // Throws Error(VOSRT_INVALID_SESSION) where it contradicts itself, or the data end before as many slots of `slot_bytes`, a
    // function of the number of objects, as they should hold.
    template <class SlotBytes>
    static SessionContents read(SessionReader &in, const MemoryOptions &options, const SlotBytes &slot_bytes) {
        SessionContents contents = read_unsized(in, options.channels);
        const auto slots = static_cast<size_t>(contents.kept_frames(options.context)) + contents.references.size();
        if (in.remaining() / slot_bytes(contents.ids.size()) < slots) in.refuse("it ends too early");
        return contents;
    }

   private:
    static SessionContents read_unsized(SessionReader &in, int32_t channels);
};

}  // namespace vosrt
