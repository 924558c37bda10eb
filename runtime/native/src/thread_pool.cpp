#include "thread_pool.hpp"

#include <algorithm>
#include <string>
#include <system_error>

#include "error.hpp"

namespace vosrt {

ThreadPool::ThreadPool(int32_t threads) {
    if (threads <= 0) threads = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
    Team *const team = team_.get();
    try {
        team->workers.reserve(threads - 1);
        for (int32_t worker = 1; worker < threads; ++worker) team->workers.emplace_back([team, worker] { team->work(worker); });
    } catch (const std::system_error &error) {
        const std::string started = std::to_string(size());
        team->end();  // the destructor of a half-built object does not run
        throw Error(VOSRT_OUT_OF_MEMORY, "the system starts no more than " + started + " of " + std::to_string(threads) +
                                             " threads (" + error.what() + "); use fewer threads");
    } catch (...) {
        team->end();
        throw;
    }
}

ThreadPool::~ThreadPool() {
    if (forks_ == fork_count())
        team_->end();
    else if (!team_->workers.empty())
        (void)team_.release();  // destroying what absent threads wait on would wait for them
}

void ThreadPool::Team::end() {
    {
        const std::lock_guard lock(mutex);
        stop = true;
    }
    start.notify_all();
    for (auto &thread : workers) thread.join();
}

void ThreadPool::run_erased(int32_t jobs, Call call, const void *body) {
    Team &team = *team_;
    if (team.workers.empty() || jobs <= 1) {
        for (int32_t job = 0; job < jobs; ++job) call(body, job, 0);
        return;
    }
    {
        const std::lock_guard lock(team.mutex);
        team.call = call;
        team.body = body;
        team.jobs = jobs;
        team.next.store(0, std::memory_order_relaxed);
        team.busy = static_cast<int32_t>(team.workers.size());
        ++team.round;
    }
    team.start.notify_all();
    team.drain(0);
    std::unique_lock lock(team.mutex);
    team.finished.wait(lock, [&team] { return team.busy == 0; });
}

void ThreadPool::Team::drain(int32_t worker) {
    for (;;) {
        const int32_t job = next.fetch_add(1, std::memory_order_relaxed);
        if (job >= jobs) return;
        call(body, job, worker);
    }
}

void ThreadPool::Team::work(int32_t worker) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    for (;;) {
        start.wait(lock, [&] { return stop || round != seen; });
        if (stop) return;
        seen = round;
        lock.unlock();
        drain(worker);
        lock.lock();
        if (--busy == 0) finished.notify_one();
    }
}

}  // namespace vosrt
