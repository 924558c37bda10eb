// AVX-512 BF16: 32 queries against up to 12 keys, two channels a step, products in bf16, sums in fp32.
#include "match_avx512.hpp"

namespace vosrt {
namespace {

struct Bf16Product {
    using Element = uint16_t;
    static constexpr bool kCentred = true;
    static constexpr int32_t kGroup = 2;
    static __m512 load(const uint16_t *query) { return _mm512_load_ps(query); }
    static __m512 broadcast(const uint16_t *key) {
        int32_t pair;
        std::memcpy(&pair, key, sizeof pair);
        return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
    }
    static __m512 add(__m512 sum, __m512 query, __m512 key) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(query), reinterpret_cast<__m512bh>(key));
    }
};

}  // namespace

const MatchKernel kMatchAvx512Bf16 = make_kernel<Avx512Ops<Bf16Product>>(VOSRT_ISA_AVX512_BF16);

}  // namespace vosrt
