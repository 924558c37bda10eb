// A fixed set of worker threads that share numbered jobs; the caller works too.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace vosrt {

class ThreadPool {
   public:
    explicit ThreadPool(int32_t threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    int32_t size() const { return static_cast<int32_t>(workers_.size()) + 1; }

    // Calls body(job, worker) for every job in [0, jobs), worker in [0, size()); returns when all are done.
    // The body must not throw.
    template <class Body>
    void run(int32_t jobs, const Body &body) {
        run_erased(jobs, [](const void *b, int32_t job, int32_t worker) { (*static_cast<const Body *>(b))(job, worker); },
                   &body);
    }

   private:
    using Call = void (*)(const void *body, int32_t job, int32_t worker);

    void run_erased(int32_t jobs, Call call, const void *body);
    void work(int32_t worker);
    void drain(int32_t worker);

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable start_, finished_;
    uint64_t round_ = 0;
    int32_t busy_ = 0;
    bool stop_ = false;
    Call call_ = nullptr;
    const void *body_ = nullptr;
    int32_t jobs_ = 0;
    std::atomic<int32_t> next_{0};
};

}  // namespace vosrt
