// AVX-512: 32 queries in two registers against up to 12 keys, fp32.
#include "match_avx512.hpp"

namespace vosrt {
namespace {

struct Fp32Product {
    using Element = float;
    static constexpr bool kCentred = false;
    static constexpr int32_t kGroup = 1;
    static __m512 load(const float *query) { return _mm512_load_ps(query); }
    static __m512 broadcast(const float *key) { return _mm512_set1_ps(*key); }
    static __m512 add(__m512 sum, __m512 query, __m512 key) { return _mm512_fmadd_ps(query, key, sum); }
};

}  // namespace

const MatchKernel kMatchAvx512 = make_kernel<Avx512Ops<Fp32Product>>(VOSRT_ISA_AVX512);

}  // namespace vosrt
