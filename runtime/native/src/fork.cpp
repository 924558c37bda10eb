#include "fork.hpp"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace vosrt {
namespace {

std::atomic<uint32_t> forks{0};

#if !defined(_WIN32)
[[maybe_unused]] const int counting = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
#endif

}  // namespace

uint32_t fork_count() { return forks.load(std::memory_order_relaxed); }

void at_fork([[maybe_unused]] void (*before)(), [[maybe_unused]] void (*after)()) {
#if !defined(_WIN32)
    pthread_atfork(before, after, after);
#endif
}

}  // namespace vosrt
