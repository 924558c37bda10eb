// Handles. A handle is a number in the shape of a pointer, never an address: numbers are not given twice, so a handle that was
// destroyed, is of another kind, or never was one is refused and not followed.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>

#include "error.hpp"
#include "fork.hpp"

namespace vosrt {

// The public function that the calling thread is in; set by `guarded`.
extern thread_local const char *current_call;

struct Object;

// Lets calls pass one at a time.
class CallLock {
   public:
    // Waits for calls of other threads. Throws Error(VOSRT_INVALID_HANDLE) in a call of the calling thread itself, which would wait
    // for ever, and in a process that forked off while another thread was inside or from an object that has threads.
    void enter(const Object &object);
    void leave();
    bool is_mine() const { return owner_.load(std::memory_order_relaxed) == std::this_thread::get_id(); }
    bool was_forked() const { return forks_.load(std::memory_order_relaxed) != fork_count(); }

   private:
    std::mutex mutex_;
    std::atomic<std::thread::id> owner_{};
    std::atomic<const char *> call_{nullptr};  // of the owner
    std::atomic<uint32_t> forks_{fork_count()};
};

[[noreturn]] void refuse_forked(const char *kind);

// What lies behind a handle: `Behind<vosrt_memory>` and so on derive from this.
struct Object {
    explicit Object(const char *kind_) : kind(kind_) {}
    virtual ~Object() = default;
    // Whether work is shared with threads, which a fork leaves behind.
    virtual bool has_threads() const { return false; }
    // Whether vosrt_…_destroy may end it; what belongs to another object is not the caller's to destroy.
    virtual bool is_owned() const { return false; }

    const char *const kind;
    std::shared_ptr<CallLock> lock;  // empty where any number of calls may run at once
    const uint32_t forks = fork_count();
};

uintptr_t add_handle(std::shared_ptr<Object> object);
// Throw Error(VOSRT_INVALID_HANDLE) unless the handle is one of this kind.
std::shared_ptr<Object> find_handle(uintptr_t handle, const char *kind);
// The object, which no new call finds any more; empty, with the reason as last error, where there is none to destroy.
std::shared_ptr<Object> take_handle(uintptr_t handle, const char *kind) noexcept;
// End the handle of an object that belongs to another one.
void drop_handle(uintptr_t handle) noexcept;

template <class Handle>
struct Behind;  // : Object, with `static constexpr char kKind[]`

template <class Handle>
Handle *make_handle(std::shared_ptr<Behind<Handle>> object) {
    return reinterpret_cast<Handle *>(add_handle(std::move(object)));
}

// A call on a handle: keeps its object alive and, where it has a lock, others out.
template <class Handle>
class Call {
   public:
    using Target = Behind<std::remove_const_t<Handle>>;

    explicit Call(Handle *handle) {
        if (handle == nullptr) invalid(std::string(Target::kKind) + " is NULL");
        object_ = std::static_pointer_cast<Target>(find_handle(reinterpret_cast<uintptr_t>(handle), Target::kKind));
        if (object_->lock != nullptr)
            object_->lock->enter(*object_);
        else if (object_->forks != fork_count() && object_->has_threads())
            refuse_forked(Target::kKind);
    }
    ~Call() {
        if (object_->lock != nullptr) object_->lock->leave();
    }
    Call(const Call &) = delete;
    Call &operator=(const Call &) = delete;
    Target *operator->() const { return object_.get(); }
    Target &operator*() const { return *object_; }

   private:
    std::shared_ptr<Target> object_;
};

// End a handle. A call that runs in another thread is waited for; one of the calling thread goes on with the object.
template <class Handle>
void destroy_handle(Handle *handle) noexcept {
    if (handle == nullptr) return;
    const std::shared_ptr<Object> object = take_handle(reinterpret_cast<uintptr_t>(handle), Behind<Handle>::kKind);
    if (object == nullptr || object->lock == nullptr || object->lock->is_mine() || object->lock->was_forked()) return;
    try {
        object->lock->enter(*object);
        object->lock->leave();
    } catch (...) {
        // A process that forked off meanwhile does not wait.
    }
}

}  // namespace vosrt
