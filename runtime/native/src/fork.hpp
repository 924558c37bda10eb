// What a fork leaves behind: a child process has one thread, whatever its parent had.
#pragma once

#include <atomic>
#include <cstdint>

namespace vosrt {

// Forks between the first process that loaded the library and this one. What was made at another count was made in another process.
uint32_t fork_count();

// Run `before` in the parent before every fork and `after` in both processes behind it. Once for each pair, when the library is loaded.
void at_fork(void (*before)(), void (*after)());

}  // namespace vosrt
