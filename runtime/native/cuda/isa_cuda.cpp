// What libvosrt_cuda has in place of src/isa.cpp: one path.
#include "error.hpp"
#include "isa.hpp"

namespace vosrt {

const char *isa_name(vosrt_isa isa) { return isa == VOSRT_ISA_AUTO ? "auto" : isa == VOSRT_ISA_CUDA ? "cuda"
                                                                                                    : "unknown"; }
bool isa_available(vosrt_isa isa) { return isa == VOSRT_ISA_CUDA; }
bool has_int8_dot_products() { return false; }  // a question to libvosrt

vosrt_isa choose_isa(vosrt_isa wanted, vosrt_precision precision) {
    if (wanted != VOSRT_ISA_AUTO && wanted != VOSRT_ISA_CUDA)
        throw Error(VOSRT_UNSUPPORTED, "libvosrt_cuda computes on the GPU; the processor's instruction-set paths are libvosrt's");
    if (precision == VOSRT_PRECISION_FP32)
        throw Error(VOSRT_UNSUPPORTED, "libvosrt_cuda computes in bf16; fp32 was asked for: use 'auto' or 'bf16', or device 'cpu'");
    return VOSRT_ISA_CUDA;
}

void check_device(int32_t) {}

}  // namespace vosrt
