// The one exception type inside the library; the C API turns it into a status and a text.
#pragma once

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

}  // namespace vosrt
