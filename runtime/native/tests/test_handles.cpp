// What a host can do wrong with handles, sizes and strides, and what several threads and a forked process do with one stream.
#include <atomic>
#include <climits>
#include <cstring>
#include <string>
#include <thread>

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "check.hpp"

namespace {

constexpr int32_t kSide = 64, kChannels = 8;

struct Pixels {
    std::vector<uint8_t> bgr = std::vector<uint8_t>(kSide * kSide * 3, 90), marks = std::vector<uint8_t>(kSide * kSide);

    Pixels() {
        for (int i = 0; i < kSide * kSide; ++i) marks[i] = i / kSide >= 16 && i / kSide < 40 && i % kSide < 30;
    }
    vosrt_image frame() const { return view(VOSRT_FORMAT_BGR, bgr); }
    vosrt_image mask() const { return view(VOSRT_FORMAT_GRAY, marks); }

   private:
    static vosrt_image view(int32_t format, const std::vector<uint8_t> &data) {
        vosrt_image image{};
        image.struct_size = sizeof image;
        image.format = format;
        image.height = image.width = kSide;
        image.data = data.data();
        return image;
    }
};

const Pixels kPixels;

vosrt_status encode(void *, const vosrt_encode_task *task) {
    for (int32_t i = 0; i < task->grid_height * task->grid_width * task->channels; ++i)
        task->embedding[i] = i / task->channels % task->channels == i % task->channels;
    return VOSRT_OK;
}

std::atomic<int> destroyed_engines{0};

vosrt_model *make_model(uint32_t flags = 0) {
    vosrt_model_options options = vosrt::model_options();
    options.channels = kChannels;
    vosrt_engine engine{};
    engine.struct_size = sizeof engine;
    engine.flags = flags;
    engine.encode = encode;
    engine.destroy = [](void *) { ++destroyed_engines; };
    vosrt_model *model = nullptr;
    CHECK(vosrt_model_create(&options, &engine, &model) == VOSRT_OK);
    return model;
}

vosrt_stream *open_queue(const vosrt_model *model, vosrt_stream_options options = vosrt::stream_options()) {
    if (options.threads == 0) options.threads = 2;
    vosrt_stream *stream = nullptr;
    CHECK(vosrt_stream_create(model, &options, &stream) == VOSRT_OK);
    return stream;
}

vosrt_status step(vosrt_stream *stream, bool marked = false) {
    const vosrt_image frame = kPixels.frame(), mask = kPixels.mask();
    return vosrt_stream_step(stream, &frame, marked ? &mask : nullptr, nullptr);
}

bool says(const char *text) { return std::string(vosrt_last_error()).find(text) != std::string::npos; }

void a_destroyed_handle_is_refused() {
    vosrt_model *model = make_model();
    vosrt_stream *stream = open_queue(model);
    CHECK(step(stream, true) == VOSRT_OK);
    vosrt_stream_destroy(stream);
    vosrt_stream *const next = open_queue(model);
    CHECK(next != stream);  // a number is not given twice
    CHECK(step(stream) == VOSRT_INVALID_HANDLE && says("destroyed"));
    vosrt_stream_destroy(stream);
    CHECK(step(next, true) == VOSRT_OK);
    vosrt_stream_destroy(next);
    vosrt_model_destroy(model);
    vosrt_model_destroy(model);
    CHECK(std::string(vosrt_model_describe(model)).empty());
    CHECK(step(reinterpret_cast<vosrt_stream *>(const_cast<uint8_t *>(kPixels.bgr.data()))) == VOSRT_INVALID_HANDLE);
}

void another_kind_of_handle_is_refused() {
    vosrt_model *model = make_model();
    CHECK(step(reinterpret_cast<vosrt_stream *>(model)) == VOSRT_INVALID_HANDLE && says("of a model; expected a stream"));
    vosrt_model_destroy(model);
}

void a_memory_of_a_stream_ends_with_it() {
    vosrt_model *model = make_model();
    vosrt_stream *stream = open_queue(model);
    CHECK(step(stream, true) == VOSRT_OK);
    vosrt_memory *memory = nullptr, *again = nullptr;
    CHECK(vosrt_stream_memory(stream, &memory) == VOSRT_OK && vosrt_stream_memory(stream, &again) == VOSRT_OK && memory == again);
    vosrt_memory_destroy(memory);
    CHECK(says("belongs to a stream"));
    vosrt_memory_info info{};
    info.struct_size = sizeof info;
    CHECK(step(stream) == VOSRT_OK && vosrt_memory_get_info(memory, &info) == VOSRT_OK && info.frames == 2);
    vosrt_stream_destroy(stream);
    CHECK(vosrt_memory_get_info(memory, &info) == VOSRT_INVALID_HANDLE);
    vosrt_model_destroy(model);
}

void a_callback_that_calls_back_is_refused() {
    static vosrt_stream *own;
    static vosrt_status inside = VOSRT_OK;
    vosrt_model *model = make_model();
    vosrt_stream_options options = vosrt::stream_options();
    options.on_result = [](void *, const vosrt_result *) { inside = step(own); };
    own = open_queue(model, options);
    CHECK(step(own) == VOSRT_OK);
    CHECK(inside == VOSRT_INVALID_HANDLE && says("vosrt_stream_step was called within vosrt_stream_step"));
    vosrt_stream_destroy(own);
    options.on_result = [](void *, const vosrt_result *result) {
        vosrt_stream_destroy(own);  // goes on to the end of the step
        CHECK(result->labels[0] == 0);
    };
    own = open_queue(model, options);
    CHECK(step(own) == VOSRT_OK && step(own) == VOSRT_INVALID_HANDLE);
    vosrt_model_destroy(model);
}

void sizes_of_structs_are_bounded() {
    alignas(8) unsigned char room[4096]{};
    auto *options = reinterpret_cast<vosrt_memory_options *>(room);
    *options = vosrt::memory_options();
    options->height = options->width = 4;
    options->channels = kChannels;
    options->threads = 1;
    for (const uint32_t size : {0u, 75u, 1025u, 0x7fffffffu, UINT32_MAX}) {
        options->struct_size = size;
        vosrt_memory *memory = nullptr;
        CHECK(vosrt_memory_create(options, &memory) == VOSRT_INVALID_ARGUMENT && memory == nullptr);
    }
    for (const uint32_t size : {76u, static_cast<uint32_t>(sizeof *options), 1024u}) {  // an older caller's, ours, a newer caller's
        options->struct_size = size;
        vosrt_memory *memory = nullptr;
        CHECK(vosrt_memory_create(options, &memory) == VOSRT_OK);
        vosrt_memory_destroy(memory);
    }
}

void strides_that_no_memory_has_are_refused() {
    vosrt_model *model = make_model();
    vosrt_stream *stream = open_queue(model);
    CHECK(step(stream, true) == VOSRT_OK);
    vosrt_memory *memory = nullptr;
    CHECK(vosrt_stream_memory(stream, &memory) == VOSRT_OK);
    std::vector<uint8_t> target(kSide * kSide * 3);
    const uint8_t *pixels = kPixels.bgr.data();
    for (const int64_t stride : {INT64_MIN, INT64_MIN + 1, int64_t{-63}, int64_t{63}, INT64_MAX, INT64_MAX / 2, int64_t{1} << 62, int64_t{1} << 42}) {
        vosrt_image frame = kPixels.frame(), mask = kPixels.mask();
        mask.stride = stride;
        CHECK(vosrt_stream_step(stream, &frame, &mask, nullptr) == VOSRT_INVALID_ARGUMENT && says("mask.stride"));
        for (const int32_t format : {VOSRT_FORMAT_BGR, VOSRT_FORMAT_BGRA, VOSRT_FORMAT_NV12}) {
            frame.format = format;
            frame.stride = stride;
            CHECK(vosrt_stream_step(stream, &frame, nullptr, nullptr) == VOSRT_INVALID_ARGUMENT && says("frame.stride"));
        }
        frame.stride = 0;
        frame.chroma_stride = stride;
        CHECK(vosrt_stream_step(stream, &frame, nullptr, nullptr) == VOSRT_INVALID_ARGUMENT && says("frame.chroma_stride"));
        CHECK(vosrt_memory_annotate(memory, kPixels.marks.data(), kSide, kSide, stride) == VOSRT_INVALID_ARGUMENT);
        CHECK(vosrt_stream_copy_labels(stream, target.data(), stride) == VOSRT_INVALID_ARGUMENT);
        CHECK(vosrt_resize_bgr(pixels, kSide, kSide, stride, target.data(), 16, 16, 48) == VOSRT_INVALID_ARGUMENT);
        CHECK(vosrt_resize_bgr(pixels, kSide, kSide, 3 * kSide, target.data(), 30, 30, stride) == VOSRT_INVALID_ARGUMENT);
    }
    // Rows with padding, and rows that go upwards.
    std::vector<uint8_t> padded(kSide * 1000, 90);
    vosrt_image frame = kPixels.frame();
    frame.data = padded.data();
    frame.stride = 1000;
    CHECK(vosrt_stream_step(stream, &frame, nullptr, nullptr) == VOSRT_OK);
    frame.data = padded.data() + (kSide - 1) * 1000;
    frame.stride = -1000;
    CHECK(vosrt_stream_step(stream, &frame, nullptr, nullptr) == VOSRT_OK);
    vosrt_stream_destroy(stream);
    vosrt_model_destroy(model);
}

// Four threads on one stream: steps, marks, removals, results, sessions. Every result is of one frame, and no frame is lost.
void threads_share_a_stream() {
    struct Seen {
        std::atomic<int64_t> results{0}, last{-1};
    } static seen;
    vosrt_model *model = make_model();
    vosrt_stream_options options = vosrt::stream_options();
    options.on_result = [](void *, const vosrt_result *result) {
        ++seen.results;
        CHECK(result->index >= seen.last);
        seen.last = result->index;
        for (int32_t i = 0; i < kSide * kSide; ++i) CHECK(result->labels[i] <= 1);
    };
    vosrt_stream *stream = open_queue(model, options);
    CHECK(step(stream, true) == VOSRT_OK);
    constexpr int kTurns = 40;
    std::atomic<int> adds{0};
    const auto work = [&](int thread) {
        const vosrt_image mask = kPixels.mask();
        for (int turn = 0; turn < kTurns; ++turn) {
            CHECK(step(stream) == VOSRT_OK);
            if (thread == 1) adds += vosrt_stream_add(stream, &mask, nullptr) == VOSRT_OK;
            if (thread == 2) vosrt_stream_remove(stream, 1);
            size_t size = 0;
            if (thread == 3) CHECK(vosrt_stream_save(stream, nullptr, 0, &size) == VOSRT_BUFFER_TOO_SMALL && size > 0);
        }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back(work, i);
    for (auto &thread : threads) thread.join();
    CHECK(seen.last == 4 * kTurns && adds == kTurns && seen.results == 1 + 5 * kTurns);
    vosrt_stream_destroy(stream);
    vosrt_model_destroy(model);
}

// Nothing is allocated for a session whose frames this stream would not see as it did.
void a_session_of_another_size_is_refused() {
    vosrt_model *model = make_model();
    vosrt_stream *stream = open_queue(model);
    CHECK(step(stream, true) == VOSRT_OK);
    size_t size = 0;
    CHECK(vosrt_stream_save(stream, nullptr, 0, &size) == VOSRT_BUFFER_TOO_SMALL);
    std::vector<uint8_t> session(size);
    CHECK(vosrt_stream_save(stream, session.data(), size, &size) == VOSRT_OK);
    vosrt_stream_options options = vosrt::stream_options();
    options.size = 32;
    vosrt_stream *loaded = nullptr;
    CHECK(vosrt_stream_load(model, &options, session.data(), size, &loaded) == VOSRT_INVALID_SESSION && says("a grid of 8 x 8, here they have 4 x 4"));
    options.size = 0;
    CHECK(vosrt_stream_load(model, &options, session.data(), size, &loaded) == VOSRT_OK && step(loaded) == VOSRT_OK);
    vosrt_load_options wanted = vosrt::load_options();
    vosrt_memory *memory = nullptr;
    wanted.channels = kChannels + 1;
    CHECK(vosrt_memory_load(session.data(), size, &wanted, &memory, nullptr) == VOSRT_INVALID_SESSION && says("another network"));
    wanted.channels = kChannels;
    wanted.max_side = 7;
    CHECK(vosrt_memory_load(session.data(), size, &wanted, &memory, nullptr) == VOSRT_INVALID_SESSION && says("8 cells a side"));
    wanted.max_side = 8;
    CHECK(vosrt_memory_load(session.data(), size, &wanted, &memory, nullptr) == VOSRT_OK);
    vosrt_memory_destroy(memory);
    for (vosrt_stream *each : {stream, loaded}) vosrt_stream_destroy(each);
    vosrt_model_destroy(model);
}

void destroying_waits_for_other_threads() {
    static std::atomic<bool> inside;
    inside = false;
    vosrt_model *model = make_model();
    vosrt_stream_options options = vosrt::stream_options();
    options.on_result = [](void *, const vosrt_result *) {
        inside = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        inside = false;
    };
    vosrt_stream *stream = open_queue(model, options);
    std::thread stepping([&] {
        while (step(stream) == VOSRT_OK) {
        }
    });
    while (!inside) std::this_thread::yield();
    vosrt_stream_destroy(stream);
    CHECK(!inside);
    stepping.join();
    vosrt_model_destroy(model);
}

#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)
template <class Body>
void in_a_child(const Body &body) {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);  // hanging is a failure
        body();
        _exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void a_forked_process_makes_its_own() {
    vosrt_model *model = make_model(), *with_threads = make_model(VOSRT_ENGINE_THREADS);
    vosrt_stream_options alone = vosrt::stream_options();
    alone.threads = 1;
    vosrt_stream *stream = open_queue(model), *single = open_queue(model, alone), *engine_threads = open_queue(with_threads, alone);
    for (vosrt_stream *each : {stream, single, engine_threads}) CHECK(step(each, true) == VOSRT_OK);
    vosrt_memory *memory = nullptr;
    CHECK(vosrt_stream_memory(stream, &memory) == VOSRT_OK);
    const int before = destroyed_engines;
    in_a_child([&] {
        vosrt_memory_info info{};
        info.struct_size = sizeof info;
        CHECK(step(stream) == VOSRT_INVALID_HANDLE && says("forked"));
        CHECK(vosrt_memory_get_info(memory, &info) == VOSRT_INVALID_HANDLE);
        CHECK(step(engine_threads) == VOSRT_INVALID_HANDLE);
        vosrt_stream *refused = nullptr;
        CHECK(vosrt_stream_create(with_threads, nullptr, &refused) == VOSRT_INVALID_HANDLE && says("the model has threads"));
        CHECK(step(single) == VOSRT_OK && step(single) == VOSRT_OK);
        vosrt_stream *own = open_queue(model);  // the engine has no threads
        CHECK(step(own, true) == VOSRT_OK);
        for (vosrt_stream *each : {stream, single, engine_threads, own}) vosrt_stream_destroy(each);
        vosrt_model_destroy(with_threads);
        CHECK(destroyed_engines == before);
        vosrt_model_destroy(model);
        CHECK(destroyed_engines == before + 1);
    });
    CHECK(step(stream) == VOSRT_OK && step(single) == VOSRT_OK && step(engine_threads) == VOSRT_OK);
    for (vosrt_stream *each : {stream, single, engine_threads}) vosrt_stream_destroy(each);
    vosrt_model_destroy(with_threads);
    vosrt_model_destroy(model);
    CHECK(destroyed_engines == before + 2);
}

void a_fork_in_the_middle_of_a_call_does_not_hang() {
    static std::atomic<bool> inside, go_on;
    inside = go_on = false;
    vosrt_model *model = make_model();
    vosrt_stream_options options = vosrt::stream_options();
    options.threads = 1;
    options.on_result = [](void *, const vosrt_result *) {
        inside = true;
        while (!go_on) std::this_thread::yield();
    };
    vosrt_stream *stream = open_queue(model, options);
    std::thread stepping([&] { CHECK(step(stream) == VOSRT_OK); });
    while (!inside) std::this_thread::yield();
    in_a_child([&] {
        CHECK(step(stream) == VOSRT_INVALID_HANDLE && says("vosrt_stream_step ran in another thread"));
        vosrt_stream_destroy(stream);
    });
    go_on = true;
    stepping.join();
    vosrt_stream_destroy(stream);
    vosrt_model_destroy(model);
}
#endif

}  // namespace

int main() {
    a_destroyed_handle_is_refused();
    another_kind_of_handle_is_refused();
    a_memory_of_a_stream_ends_with_it();
    a_callback_that_calls_back_is_refused();
    sizes_of_structs_are_bounded();
    strides_that_no_memory_has_are_refused();
    threads_share_a_stream();
    a_session_of_another_size_is_refused();
    destroying_waits_for_other_threads();
#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)
    if (std::getenv("VOSRT_TEST_EMULATED") != nullptr) return 0;  // QEMU cannot start a thread in a forked process
    a_forked_process_makes_its_own();
    a_fork_in_the_middle_of_a_call_does_not_hang();
#endif
    return 0;
}
