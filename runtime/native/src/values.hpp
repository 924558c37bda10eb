// Values of objects (mask embeddings), read with the neighbours that match found.
#pragma once

#include "thread_pool.hpp"
#include "vosrt.h"

namespace vosrt {

// See vosrt_read_values. Throws Error where the task does not make sense.
void read_values(const vosrt_values_task &task);
// The same with workers that exist already; `threads` of the task is not read.
void read_values(const vosrt_values_task &task, ThreadPool &pool);

}  // namespace vosrt
