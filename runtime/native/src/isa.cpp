#include "isa.hpp"

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>

#include "error.hpp"

#if defined(VOSRT_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace vosrt {
namespace {

constexpr std::array<const char *, 9> kNames = {"auto", "generic", "avx2", "avx512", "avx512bf16",
                                                "amx", "amx-emulated", "cuda", "neon"};

#if defined(VOSRT_X86)

uint64_t enabled_register_state() {
    uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

struct Features {
    bool avx2 = false, avx512 = false, avx512bf16 = false, amx = false, int8 = false;
};

// The kernel grants the 8 KB of tile state to a process only on request.
bool request_amx_permission() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

Features detect() {
    Features found;
    uint32_t a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const bool fma = c & (1u << 12), osxsave = c & (1u << 27);
    if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    const uint64_t state = enabled_register_state();
    const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
    found.avx2 = ymm && fma && (b & (1u << 5));
    constexpr uint32_t kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
    constexpr uint32_t kAvx512 = kF | kDq | kBw | kVl;
    found.avx512 = zmm && found.avx2 && (b & kAvx512) == kAvx512;
    const bool amx = (d & (1u << 22)) && (d & (1u << 24));  // AMX-BF16, AMX-TILE
    const bool vnni = found.avx512 && (c & (1u << 11));
    uint32_t a1 = 0, b1 = 0, c1 = 0, d1 = 0;
    if (a >= 1 && __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1)) found.avx512bf16 = vnni && (a1 & (1u << 5));
    found.int8 = vnni || (found.avx2 && (a1 & (1u << 4)));
    found.amx = amx && tiles && found.avx512bf16 && request_amx_permission();
    return found;
}

const Features &features() {
    static const Features found = detect();
    return found;
}

#endif  // VOSRT_X86

vosrt_isa isa_from_environment() {
    const char *name = std::getenv("VOSRT_ISA");
    if (name == nullptr || *name == '\0') return VOSRT_ISA_AUTO;
    for (size_t i = 0; i < kNames.size(); ++i)
        if (std::strcmp(name, kNames[i]) == 0) return static_cast<vosrt_isa>(i);
    invalid("VOSRT_ISA is '" + std::string(name) +
            "'; expected auto, generic, avx2, avx512, avx512bf16, amx, amx-emulated or neon");
}

}  // namespace

const char *isa_name(vosrt_isa isa) {
    const auto i = static_cast<size_t>(isa);
    return i < kNames.size() ? kNames[i] : "unknown";
}

bool isa_available(vosrt_isa isa) {
    switch (isa) {
        case VOSRT_ISA_GENERIC: return true;
#if defined(VOSRT_X86)
        case VOSRT_ISA_AVX2: return features().avx2;
        case VOSRT_ISA_AVX512: return features().avx512;
        case VOSRT_ISA_AVX512_BF16: return features().avx512bf16;
        case VOSRT_ISA_AMX: return features().amx;
#elif defined(VOSRT_ARM64)
        case VOSRT_ISA_NEON: return true;  // a part of the architecture
#endif
        case VOSRT_ISA_AMX_EMULATED: return true;
        default: return false;
    }
}

bool has_int8_dot_products() {
#if defined(VOSRT_X86)
    return features().int8;
#else
    return false;
#endif
}

vosrt_isa choose_isa(vosrt_isa wanted, vosrt_precision precision) {
    if (wanted == VOSRT_ISA_AUTO) wanted = isa_from_environment();
    if (wanted == VOSRT_ISA_CUDA) throw Error(VOSRT_UNSUPPORTED, "instruction-set path 'cuda' is libvosrt_cuda's");
    if (wanted != VOSRT_ISA_AUTO) {
        const std::string name = isa_name(wanted);
        if (!isa_available(wanted))
            throw Error(VOSRT_UNSUPPORTED, "instruction-set path '" + name + "' was asked for; this processor lacks it");
        if (precision != VOSRT_PRECISION_AUTO && isa_is_bf16(wanted) != (precision == VOSRT_PRECISION_BF16))
            throw Error(VOSRT_UNSUPPORTED, "instruction-set path '" + name + "' computes in " +
                                               (isa_is_bf16(wanted) ? "bf16; fp32" : "fp32; bf16") + " was asked for");
        return wanted;
    }
    for (vosrt_isa isa : {VOSRT_ISA_AMX, VOSRT_ISA_AVX512_BF16, VOSRT_ISA_AVX512, VOSRT_ISA_AVX2, VOSRT_ISA_NEON, VOSRT_ISA_GENERIC}) {
        if (precision != VOSRT_PRECISION_AUTO && isa_is_bf16(isa) != (precision == VOSRT_PRECISION_BF16)) continue;
        if (isa_available(isa)) return isa;
    }
    throw Error(VOSRT_UNSUPPORTED, "bf16 was asked for; this processor has neither AMX nor AVX-512 BF16: use fp32");
}

void check_device(int32_t device) {
    if (device != 0)
        throw Error(VOSRT_UNSUPPORTED, "device " + std::to_string(device) +
                                           " was asked for; libvosrt computes on the processor: use "
                                           "libvosrt_cuda");
}

}  // namespace vosrt
