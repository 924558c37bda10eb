// A fixed set of worker threads that share numbered jobs; the caller works too.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "fork.hpp"

namespace vosrt {

class ThreadPool {
   public:
    // 0 threads are one per processor. Throws Error where the system does not start as many.
    explicit ThreadPool(int32_t threads);
    // In a process that forked off, workers are not waited for: they stayed behind.
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    int32_t size() const { return static_cast<int32_t>(team_->workers.size()) + 1; }

    // Calls body(job, worker) for every job in [0, jobs), worker in [0, size()); returns when all are done.
    // The body must not throw.
    template <class Body>
    void run(int32_t jobs, const Body &body) {
        run_erased(jobs, [](const void *b, int32_t job, int32_t worker) { (*static_cast<const Body *>(b))(job, worker); }, &body);
    }

   private:
    using Call = void (*)(const void *body, int32_t job, int32_t worker);

    struct Team {
        std::vector<std::thread> workers;
        std::mutex mutex;
        std::condition_variable start, finished;
        uint64_t round = 0;
        int32_t busy = 0;
        bool stop = false;
        Call call = nullptr;
        const void *body = nullptr;
        int32_t jobs = 0;
        std::atomic<int32_t> next{0};

        void work(int32_t worker);
        void drain(int32_t worker);
        void end();
    };

    void run_erased(int32_t jobs, Call call, const void *body);

    std::unique_ptr<Team> team_ = std::make_unique<Team>();
    const uint32_t forks_ = fork_count();
};

}  // namespace vosrt
