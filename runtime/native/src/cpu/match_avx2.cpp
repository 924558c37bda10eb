// AVX2 + FMA: 16 queries in two registers against up to 6 keys.
#include <immintrin.h>

#include "match_rows.hpp"

namespace vosrt {
namespace {

struct Avx2 {
    using Register = __m256;
    static constexpr int32_t kWidth = 8;
    static Register zero() { return _mm256_setzero_ps(); }
    static Register load(const float *p) { return _mm256_loadu_ps(p); }
    static void store(float *p, Register a) { _mm256_store_ps(p, a); }
    static Register broadcast(const float *p) { return _mm256_broadcast_ss(p); }
    static Register fused(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
    static uint32_t at_least(Register a, Register b) { return bits(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
    static uint32_t not_less(Register a, Register b) { return bits(_mm256_cmp_ps(a, b, _CMP_NLT_UQ)); }
    static uint32_t bits(Register lanes) { return static_cast<uint32_t>(_mm256_movemask_ps(lanes)); }
};

}  // namespace

const MatchKernel kMatchAvx2 = make_kernel<RowOps<Avx2>>(VOSRT_ISA_AVX2);

}  // namespace vosrt
