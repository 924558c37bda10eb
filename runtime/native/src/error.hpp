// The one exception type inside the library; the C API turns it into a status and a text.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "vosrt.h"

namespace vosrt {

class Error : public std::runtime_error {
   public:
    Error(vosrt_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    vosrt_status status() const { return status_; }

   private:
    vosrt_status status_;
};

[[noreturn]] inline void invalid(const std::string &message) { throw Error(VOSRT_INVALID_ARGUMENT, message); }

inline int32_t within(int32_t value, int32_t low, int32_t high, const char *name) {
    if (value < low || value > high)
        invalid(std::string(name) + " is " + std::to_string(value) + "; expected " + std::to_string(low) + " to " +
                std::to_string(high));
    return value;
}

constexpr int32_t kMaxSide = 65536;        // pixels of a frame, as MAX_SIDE in vosrt/types.py
constexpr int64_t kMaxStride = INT32_MAX;  // bytes; no picture has rows that lie further apart

}  // namespace vosrt
