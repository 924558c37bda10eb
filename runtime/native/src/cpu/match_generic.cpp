#include "match_generic.hpp"

namespace vosrt {

const MatchKernel kMatchGeneric = make_kernel<GenericOps>(VOSRT_ISA_GENERIC);

}  // namespace vosrt
