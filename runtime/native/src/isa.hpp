// Which instruction-set paths this processor and build can run, and the choice among them.
#pragma once

#include "vosrt.h"

namespace vosrt {

const char *isa_name(vosrt_isa isa);
bool isa_available(vosrt_isa isa);
bool isa_is_bf16(vosrt_isa isa);

// The path to run: `wanted`, else VOSRT_ISA, else the fastest that has `precision`. Throws Error.
vosrt_isa choose_isa(vosrt_isa wanted, vosrt_precision precision);

}  // namespace vosrt
