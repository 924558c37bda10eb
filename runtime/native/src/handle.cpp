#include "handle.hpp"

#include <unordered_map>

#include "vosrt.h"

namespace vosrt {

thread_local const char *current_call = "";

namespace {

struct Table {
    std::mutex mutex;
    std::unordered_map<uintptr_t, std::shared_ptr<Object>> objects;
    // Two libraries in one process start apart, so that one does not take a handle of the other for its own.
#if defined(VOSRT_CUDA_LIBRARY)
    uintptr_t next = 0x40000001;
#else
    uintptr_t next = 1;
#endif
};

// Never destroyed: a host may destroy its handles in destructors of its own static objects.
Table &table() {
    static Table *const all = [] {
        // A fork finds the table whole, whatever other threads do.
        at_fork([] { table().mutex.lock(); }, [] { table().mutex.unlock(); });
        return new Table;
    }();
    return *all;
}

std::string article_and(const char *kind) { return std::string(*kind == 'e' ? "an " : "a ") + kind; }

}  // namespace

void refuse_forked(const char *kind) {
    throw Error(VOSRT_INVALID_HANDLE, "the " + std::string(kind) +
                                          " has threads, and they stayed in the parent process when this one was forked; "
                                          "make it in the child process, or with one thread");
}

void CallLock::enter(const Object &object) {
    if (is_mine())
        throw Error(VOSRT_INVALID_HANDLE, std::string(current_call) + " was called within " + call_.load() + " of the same " + object.kind +
                                              "; let that call return first");
    if (was_forked()) {
        if (!mutex_.try_lock())
            throw Error(VOSRT_INVALID_HANDLE, std::string(call_.load()) + " ran in another thread when this process was forked and left the " +
                                                  object.kind + " unfinished; make another in the child process");
        if (object.has_threads()) {
            mutex_.unlock();
            refuse_forked(object.kind);
        }
        forks_.store(fork_count());
    } else {
        mutex_.lock();
    }
    call_.store(current_call);
    owner_.store(std::this_thread::get_id());
}

void CallLock::leave() {
    owner_.store(std::thread::id{});
    mutex_.unlock();
}

uintptr_t add_handle(std::shared_ptr<Object> object) {
    Table &all = table();
    const std::lock_guard lock(all.mutex);
    all.objects.emplace(all.next, std::move(object));
    return all.next++;
}

std::shared_ptr<Object> find_handle(uintptr_t handle, const char *kind) {
    std::shared_ptr<Object> object;
    {
        Table &all = table();
        const std::lock_guard lock(all.mutex);
        if (const auto found = all.objects.find(handle); found != all.objects.end()) object = found->second;
    }
    if (object == nullptr)
        throw Error(VOSRT_INVALID_HANDLE, std::string("the handle of the ") + kind + " is none: it was destroyed, or never created");
    if (object->kind != kind)
        throw Error(VOSRT_INVALID_HANDLE, "the handle is of " + article_and(object->kind) + "; expected " + article_and(kind));
    return object;
}

std::shared_ptr<Object> take_handle(uintptr_t handle, const char *kind) noexcept {
    try {
        std::shared_ptr<Object> object = find_handle(handle, kind);
        if (object->is_owned()) throw Error(VOSRT_INVALID_HANDLE, std::string("the ") + kind + " belongs to a stream and ends with it");
        Table &all = table();
        const std::lock_guard lock(all.mutex);
        all.objects.erase(handle);
        return object;
    } catch (const std::exception &error) {
        vosrt_set_last_error(error.what());
        return nullptr;
    }
}

void drop_handle(uintptr_t handle) noexcept {
    std::shared_ptr<Object> object;  // ends outside the lock
    Table &all = table();
    const std::lock_guard lock(all.mutex);
    if (const auto found = all.objects.find(handle); found != all.objects.end()) {
        object = std::move(found->second);
        all.objects.erase(found);
    }
}

}  // namespace vosrt
