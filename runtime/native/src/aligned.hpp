// Cache-line aligned memory that grows but never shrinks.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace vosrt {

class AlignedBuffer {
   public:
    AlignedBuffer() = default;
    explicit AlignedBuffer(size_t bytes) { reserve(bytes); }

    // Grows to at least `bytes`, zeroed; what it held is lost if it has to grow.
    void reserve(size_t bytes) {
        if (bytes <= bytes_) return;
        constexpr size_t kLine = 64;
        const size_t rounded = (bytes + kLine - 1) / kLine * kLine;
        auto *memory = static_cast<std::byte *>(::operator new(rounded, std::align_val_t{kLine}));
        std::memset(memory, 0, rounded);
        data_.reset(memory);
        bytes_ = rounded;
    }

    std::byte *data() { return data_.get(); }
    const std::byte *data() const { return data_.get(); }
    size_t bytes() const { return bytes_; }

   private:
    struct Free {
        void operator()(std::byte *memory) const { ::operator delete(memory, std::align_val_t{64}); }
    };
    std::unique_ptr<std::byte, Free> data_;
    size_t bytes_ = 0;
};

}  // namespace vosrt
