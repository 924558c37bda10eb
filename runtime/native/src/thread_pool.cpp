#include "thread_pool.hpp"

#include <algorithm>

namespace vosrt {

ThreadPool::ThreadPool(int32_t threads) {
    if (threads <= 0) threads = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
    try {
        for (int32_t worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
    } catch (...) {
        // The destructor of a half-built object does not run: stop the threads that did start.
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
        }
        start_.notify_all();
        for (auto &thread : workers_) thread.join();
        throw;
    }
}

ThreadPool::~ThreadPool() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    start_.notify_all();
    for (auto &thread : workers_) thread.join();
}

void ThreadPool::run_erased(int32_t jobs, Call call, const void *body) {
    if (workers_.empty() || jobs <= 1) {
        for (int32_t job = 0; job < jobs; ++job) call(body, job, 0);
        return;
    }
    {
        const std::lock_guard lock(mutex_);
        call_ = call;
        body_ = body;
        jobs_ = jobs;
        next_.store(0, std::memory_order_relaxed);
        busy_ = static_cast<int32_t>(workers_.size());
        ++round_;
    }
    start_.notify_all();
    drain(0);
    std::unique_lock lock(mutex_);
    finished_.wait(lock, [this] { return busy_ == 0; });
}

void ThreadPool::drain(int32_t worker) {
    for (;;) {
        const int32_t job = next_.fetch_add(1, std::memory_order_relaxed);
        if (job >= jobs_) return;
        call_(body_, job, worker);
    }
}

void ThreadPool::work(int32_t worker) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
        start_.wait(lock, [&] { return stop_ || round_ != seen; });
        if (stop_) return;
        seen = round_;
        lock.unlock();
        drain(worker);
        lock.lock();
        if (--busy_ == 0) finished_.notify_one();
    }
}

}  // namespace vosrt
