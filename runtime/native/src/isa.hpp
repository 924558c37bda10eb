// Which instruction-set paths this processor and build can run, and the choice among them.
#pragma once

#include "vosrt.h"

namespace vosrt {

const char *isa_name(vosrt_isa isa);
bool isa_available(vosrt_isa isa);
bool has_int8_dot_products();
constexpr vosrt_isa kLastIsa = VOSRT_ISA_NEON;  // of the enumeration
// Whether keys are bf16 differences from the first frame's mean, with an fp32 part; otherwise they are fp32.
inline bool isa_is_bf16(vosrt_isa isa) {
    return isa == VOSRT_ISA_AVX512_BF16 || isa == VOSRT_ISA_AMX || isa == VOSRT_ISA_AMX_EMULATED || isa == VOSRT_ISA_CUDA;
}

// The path to run: `wanted`, else VOSRT_ISA, else the fastest that has `precision`. Throws Error.
vosrt_isa choose_isa(vosrt_isa wanted, vosrt_precision precision);
// Throws Error where memories of this library cannot be on the device; whether a GPU can be used shows when it is opened.
void check_device(int32_t device);

}  // namespace vosrt
