// AVX-512: 32 queries in two registers against up to 12 keys, fp32.
#include "match_avx512.hpp"

namespace vosrt {

const MatchKernel kMatchAvx512 = make_kernel<Avx512Ops<Fp32Product>>(VOSRT_ISA_AVX512);

}  // namespace vosrt
