// NEON of 64-bit ARM: 16 queries in four registers against up to 6 keys.
#include <arm_neon.h>

#include "match_rows.hpp"

namespace vosrt {
namespace {

struct Neon {
    using Register = float32x4_t;
    static constexpr int32_t kWidth = 4;
    static Register zero() { return vdupq_n_f32(0.0f); }
    static Register load(const float *p) { return vld1q_f32(p); }
    static void store(float *p, Register a) { vst1q_f32(p, a); }
    static Register broadcast(const float *p) { return vld1q_dup_f32(p); }
    static Register fused(Register a, Register b, Register c) { return vfmaq_f32(c, a, b); }
    static uint32_t at_least(Register a, Register b) { return bits(vcgeq_f32(a, b)); }
    static uint32_t not_less(Register a, Register b) { return bits(vmvnq_u32(vcltq_f32(a, b))); }
    static uint32_t bits(uint32x4_t lanes) {
        constexpr uint32_t kBits[] = {1, 2, 4, 8};
        return vaddvq_u32(vandq_u32(lanes, vld1q_u32(kBits)));
    }
};

}  // namespace

const MatchKernel kMatchNeon = make_kernel<RowOps<Neon>>(VOSRT_ISA_NEON);

}  // namespace vosrt
