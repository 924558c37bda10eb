#include "match.hpp"

namespace vosrt {

const MatchKernel *match_kernel(vosrt_isa isa) {
    switch (isa) {
        case VOSRT_ISA_GENERIC: return &kMatchGeneric;
#if defined(VOSRT_X86)
        case VOSRT_ISA_AVX2: return &kMatchAvx2;
        case VOSRT_ISA_AVX512: return &kMatchAvx512;
        case VOSRT_ISA_AVX512_BF16: return &kMatchAvx512Bf16;
        case VOSRT_ISA_AMX: return &kMatchAmx;
#elif defined(VOSRT_ARM64)
        case VOSRT_ISA_NEON: return &kMatchNeon;
#endif
        case VOSRT_ISA_AMX_EMULATED: return &kMatchAmxEmulated;
        default: return nullptr;
    }
}

}  // namespace vosrt
