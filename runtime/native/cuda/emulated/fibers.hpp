// A block of a kernel on the processor: every thread of it is a fiber, so that the very source of the kernel runs, its
// shared memory, barriers, shuffles, asynchronous copies and tensor-core fragments included. For tests; slow.
//
// It is stricter than a GPU where it can be: fibers are resumed in random order, shared memory starts as garbage, asynchronous copies
// are done as late as is allowed, addresses are checked for alignment and bounds, and a warp whose threads meet in different
// calls ends the program, as does a block that waits for itself.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "../platform.hpp"

namespace vosrt::cuda::emulated {

[[noreturn]] inline void die(const char *what) {
    std::fprintf(stderr, "emulated CUDA kernel: %s\n", what);
    std::abort();
}

class Block;

enum class Meeting : int32_t {
    kNone,
    kSync,
    kSyncWarp,
    kAny,
    kShuffle,
    kCombine,
    kMultiply
};

class FiberThread {
   public:
    int32_t thread() const { return thread_; }
    int32_t threads() const;
    int32_t block() const;
    int32_t blocks() const;
    int32_t job() const;
    std::byte *shared() const;

    void sync();
    void sync_warp() { meet(Meeting::kSyncWarp); }
    bool any(bool value) {
        post(static_cast<uint64_t>(value));
        meet(Meeting::kAny);
        for (int32_t lane = 0; lane < 32; ++lane)
            if (posted<uint64_t>(lane) != 0) return true;
        return false;
    }
    uint64_t shuffle(uint64_t value, int32_t lane) {
        post(value);
        meet(Meeting::kShuffle);
        return posted<uint64_t>(lane);
    }
    uint32_t combine(uint32_t bits) {
        post(bits);
        meet(Meeting::kCombine);
        for (int32_t lane = 0; lane < 32; ++lane) bits |= posted<uint32_t>(lane);
        return bits;
    }
    uint64_t shuffle_xor(uint64_t value, int32_t mask) { return shuffle(value, thread_ % 32 ^ mask); }
    uint32_t shuffle_xor(uint32_t value, int32_t mask) { return static_cast<uint32_t>(shuffle(value, thread_ % 32 ^ mask)); }
    template <class Number>
    void add(Number *to, Number value) {
        *to += value;
    }

    void copy_ahead(std::byte *shared, const void *global, bool valid) {
        check_shared(shared, 16);
        if (reinterpret_cast<uintptr_t>(global) % 16 != 0) die("an asynchronous copy from an address that is not aligned");
        open_.push_back({shared, global, valid});
    }
    void commit() { groups_.push_back(std::move(open_)), open_.clear(); }
    template <int kNewest>
    void wait_ahead() {
        while (static_cast<int>(groups_.size()) > kNewest) {
            for (const Copy &copy : groups_.front())
                copy.valid ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
            groups_.erase(groups_.begin());
        }
    }

    void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        post(Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
        meet(Meeting::kMultiply);
        const int32_t lane = thread_ % 32;
        for (int32_t i = 0; i < 4; ++i) {
            const int32_t row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            float sum = 0.0f;
            for (int32_t k = 0; k < 16; ++k) {
                const auto left = posted<Fragments>(row % 8 * 4 + k % 8 / 2).a[row / 8 + 2 * (k / 8)];
                const auto right = posted<Fragments>(column * 4 + k % 8 / 2).b[k / 8];
                sum += half_of(left, k % 2) * half_of(right, k % 2);
            }
            sums[i] += sum;
        }
    }

   private:
    friend class Block;
    struct Copy {
        std::byte *to;
        const void *from;
        bool valid;
    };
    struct Fragments {
        uint32_t a[4], b[2];
    };
    static float half_of(uint32_t pair, int32_t which) { return from_bf16(static_cast<uint16_t>(pair >> (16 * which))); }

    template <class T>
    void post(const T &value);
    template <class T>
    T posted(int32_t lane) const;
    void meet(Meeting kind);
    void check_shared(const std::byte *at, size_t bytes) const;

    Block *owner_ = nullptr;
    int32_t thread_ = 0, turn_ = 0;
    bool waiting_ = false, done_ = false, started_ = false;
    std::vector<Copy> open_;
    std::vector<std::vector<Copy>> groups_;
    ucontext_t context_{};
    jmp_buf resume_{};
};

class Block {
   public:
    using Body = std::function<void(FiberThread &)>;

    Block(int32_t threads, size_t shared_bytes, uint32_t seed)
        : fibers_(threads), warps_(threads / 32), shared_(shared_bytes + 128), random_(seed) {
        if (threads % 32 != 0) die("a block that is no multiple of a warp");
        stacks_ = std::make_unique<std::byte[]>(threads * kStackBytes);
    }

    void run(const Body &body, int32_t block, int32_t blocks, int32_t job) {
        body_ = &body;
        block_ = block, blocks_ = blocks, job_ = job;
        std::memset(shared_.data(), 0xff, shared_.size());
        for (size_t i = 0; i < fibers_.size(); ++i) {
            FiberThread &fiber = fibers_[i];
            fiber.owner_ = this;
            fiber.thread_ = static_cast<int32_t>(i);
            fiber.turn_ = 0;
            fiber.waiting_ = fiber.done_ = fiber.started_ = false;
            fiber.open_.clear();
            fiber.groups_.clear();
        }
        for (Warp &warp : warps_) warp = {};
        arrived_ = 0;
        for (size_t left = fibers_.size(); left > 0;) {
            ready_.clear();
            for (FiberThread &fiber : fibers_)
                if (!fiber.waiting_ && !fiber.done_) ready_.push_back(&fiber);
            if (ready_.empty()) die("threads wait for each other at different barriers");
            std::shuffle(ready_.begin(), ready_.end(), random_);
            for (FiberThread *fiber : ready_) {
                resume(*fiber);
                left -= fiber->done_;
            }
        }
    }

   private:
    friend class FiberThread;
    static constexpr size_t kStackBytes = 64 * 1024;
    struct Warp {
        alignas(16) std::byte posts[2][32][32];
        int32_t arrived;
        Meeting kind;
    };

    void resume(FiberThread &fiber) {
        current_ = &fiber;
        if (_setjmp(scheduler_) != 0) return;
        if (fiber.started_) _longjmp(fiber.resume_, 1);
        fiber.started_ = true;
        getcontext(&fiber.context_);
        fiber.context_.uc_stack.ss_sp = stacks_.get() + fiber.thread_ * kStackBytes;
        fiber.context_.uc_stack.ss_size = kStackBytes;
        fiber.context_.uc_link = nullptr;
        starting_ = this;
        makecontext(&fiber.context_, &Block::begin, 0);
        setcontext(&fiber.context_);
    }
    static void begin() {
        Block &block = *starting_;
        FiberThread &fiber = *block.current_;
        (*block.body_)(fiber);
        fiber.done_ = true;
        _longjmp(block.scheduler_, 1);
    }
    void pause(FiberThread &fiber) {
        if (_setjmp(fiber.resume_) == 0) _longjmp(scheduler_, 1);
    }

    std::vector<FiberThread> fibers_;
    std::vector<Warp> warps_;
    std::vector<std::byte> shared_;
    std::unique_ptr<std::byte[]> stacks_;
    std::vector<FiberThread *> ready_;
    std::mt19937 random_;
    const Body *body_ = nullptr;
    FiberThread *current_ = nullptr;
    jmp_buf scheduler_{};
    int32_t block_ = 0, blocks_ = 0, job_ = 0, arrived_ = 0;
    static inline Block *starting_ = nullptr;
};

inline int32_t FiberThread::threads() const { return static_cast<int32_t>(owner_->fibers_.size()); }
inline int32_t FiberThread::block() const { return owner_->block_; }
inline int32_t FiberThread::blocks() const { return owner_->blocks_; }
inline int32_t FiberThread::job() const { return owner_->job_; }
inline std::byte *FiberThread::shared() const {
    const auto address = reinterpret_cast<uintptr_t>(owner_->shared_.data());
    return owner_->shared_.data() + ((address + 127) / 128 * 128 - address);
}
inline void FiberThread::check_shared(const std::byte *at, size_t bytes) const {
    if (reinterpret_cast<uintptr_t>(at) % 16 != 0) die("an address in shared memory that is not aligned");
    if (at < shared() || at + bytes > shared() + owner_->shared_.size() - 128) die("an address outside shared memory");
}

template <class T>
void FiberThread::post(const T &value) {
    static_assert(sizeof(T) <= 32);
    std::memcpy(owner_->warps_[thread_ / 32].posts[turn_ % 2][thread_ % 32], &value, sizeof value);
}
// What a thread of this warp posted before the last meeting; overwritten at the earliest after the next one.
template <class T>
T FiberThread::posted(int32_t lane) const {
    T value;
    std::memcpy(&value, owner_->warps_[thread_ / 32].posts[(turn_ + 1) % 2][lane], sizeof value);
    return value;
}

inline void FiberThread::meet(Meeting kind) {
    Block::Warp &warp = owner_->warps_[thread_ / 32];
    if (warp.arrived == 0) warp.kind = kind;
    if (warp.kind != kind) die("threads of a warp meet in different calls");
    ++turn_;
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        for (int32_t lane = 0; lane < 32; ++lane) owner_->fibers_[thread_ / 32 * 32 + lane].waiting_ = false;
        return;
    }
    waiting_ = true;
    owner_->pause(*this);
}

inline void FiberThread::sync() {
    if (++owner_->arrived_ == threads()) {
        owner_->arrived_ = 0;
        for (FiberThread &fiber : owner_->fibers_) fiber.waiting_ = false;
        return;
    }
    waiting_ = true;
    owner_->pause(*this);
}

}  // namespace vosrt::cuda::emulated
