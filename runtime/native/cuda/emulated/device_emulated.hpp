// The emulated queue: work is done at once, or kept while somebody records.
#pragma once

#include <functional>

#include "../device.hpp"

namespace vosrt::cuda::emulated {

void enqueue(Queue &queue, std::function<void()> work);

}  // namespace vosrt::cuda::emulated
