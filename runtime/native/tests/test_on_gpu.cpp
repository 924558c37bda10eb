// examples/vos_embed/vos_on_gpu.cpp as it is, on the emulated libvosrt_cuda and stand-ins for TensorRT and CUDA (tests/tensorrt).
//
// Then streams whose masks are refined on the GPU, beside ones whose networks take host memory.
//
//     test_on_gpu BUNDLE REFINED_BUNDLE
#define main vos_on_gpu
#include "../examples/vos_embed/vos_on_gpu.cpp"
#undef main

#include <algorithm>
#include <fstream>
#include <iterator>
#include <vector>

#include "check.hpp"

namespace {

constexpr int kSide = 64, kFrames = 6;

bool is_inside(int t, int y, int x) { return y >= 8 && y < 32 && x >= 4 * t && x < 24 + 4 * t; }

void write_clip() {
    std::ofstream frames("on_gpu.bgr", std::ios::binary), mask("on_gpu.mask", std::ios::binary);
    for (int t = 0; t < kFrames; ++t)
        for (int y = 0; y < kSide; ++y)
            for (int x = 0; x < kSide; ++x) {
                const bool inside = is_inside(t, y, x);
                frames << static_cast<char>(inside ? 20 : 120) << static_cast<char>(110) << static_cast<char>(inside ? 230 : 90);
                if (t == 0) mask << static_cast<char>(inside);
            }
    std::ofstream("on_gpu.engine") << "f32 plan 256";
}

int run(const char *bundle, const char *side) {
    std::string words[] = {"", bundle, "on_gpu.engine", side, side, "on_gpu.bgr", "on_gpu.mask", "on_gpu.labels"};
    char *arguments[std::size(words)];
    for (size_t i = 0; i < std::size(words); ++i) arguments[i] = words[i].data();
    return vos_on_gpu(static_cast<int>(std::size(words)), arguments);
}

std::vector<uint8_t> frame_of(int t) {
    std::vector<uint8_t> bgr;
    for (int y = 0; y < kSide; ++y)
        for (int x = 0; x < kSide; ++x)
            for (const int value : {is_inside(t, y, x) ? 20 : 120, 110, is_inside(t, y, x) ? 230 : 90}) bgr.push_back(static_cast<uint8_t>(value));
    return bgr;
}

// Two objects: the upper and the lower half of the square.
std::vector<uint8_t> marks_of() {
    std::vector<uint8_t> marks;
    for (int y = 0; y < kSide; ++y)
        for (int x = 0; x < kSide; ++x) marks.push_back(static_cast<uint8_t>(is_inside(0, y, x) ? 1 + (y >= 16) : 0));
    return marks;
}

struct Refining {
    vosrt::TensorRt *network;
    vosrt::Model model;
};
Refining open_refining(const vosrt::Bundle &bundle, cudaStream_t stream) {
    constexpr int kChannels = 4, kValues = 8;
    std::ofstream("on_gpu.engine") << "f32 plan " << kChannels;
    std::ofstream("on_gpu_masks.engine") << "f32 mask " << kValues;
    std::ofstream("on_gpu_decoder.engine") << "f32 draw " << kValues;
    vosrt::TensorRtOptions options;
    options.mask_encoder = "on_gpu_masks.engine", options.decoder = "on_gpu_decoder.engine", options.stream = stream;
    auto engine = vosrt::TensorRt::open(bundle, "on_gpu.engine", options).value();
    vosrt::TensorRt *const network = engine.get();
    vosrt_model_options model = bundle.model_options();
    model.channels = kChannels, model.value_channels = kValues, model.enlarge_percent = 100;
    return {network, vosrt::Model::create(model, std::move(engine)).value()};
}

std::vector<uint8_t> refined_by_way_of_the_host(const vosrt::Bundle &bundle) {
    const Refining opened = open_refining(bundle, nullptr);
    auto stream = vosrt::Stream::open(opened.model).value();
    const std::vector<uint8_t> marks = marks_of();
    std::vector<uint8_t> all;
    for (int t = 0; t < kFrames; ++t) {
        const std::vector<uint8_t> bgr = frame_of(t);
        const vosrt_image frame = vosrt::bgr(bgr.data(), kSide, kSide);
        const auto taken = (t == 0 ? stream.step(frame, vosrt::mask(marks.data(), kSide, kSide)) : stream.step(frame)).value();
        all.insert(all.end(), taken.labels.all().begin(), taken.labels.all().end());
    }
    return all;
}

std::vector<uint8_t> refined_on_the_gpu(const vosrt::Bundle &bundle) {
    vosrt_cuda_queue *made = nullptr;
    check(vosrt_cuda_queue_create(0, &made));
    const Queue queue(made);
    const auto work = static_cast<cudaStream_t>(vosrt_cuda_queue_stream(queue.get()));
    const Refining opened = open_refining(bundle, work);
    auto stream = vosrt::Stream::open(opened.model).value();
    constexpr int kCells = kSide / 8, kChannels = 4;
    const OnGpu bgr = on_gpu(3 * kSide * kSide, "a frame"), embedding = on_gpu(kCells * kCells * kChannels * sizeof(float), "an embedding");
    vosrt_embedding given{};
    given.struct_size = sizeof given;
    given.frame_height = given.frame_width = given.height = given.width = kSide;
    given.grid_height = given.grid_width = kCells, given.channels = kChannels;
    given.bgr = static_cast<const uint8_t *>(bgr.get());
    vosrt_encode_task task{};
    task.struct_size = sizeof task;
    task.height = task.width = kSide, task.grid_height = task.grid_width = kCells, task.channels = kChannels;
    task.bgr = given.bgr;
    task.embedding = static_cast<float *>(embedding.get());
    cudaStream_t ran_on = nullptr;
    cudaStreamOfWork = &ran_on;
    std::vector<uint8_t> all;
    void *features = nullptr;  // of the newest frame, which marks may need
    for (int t = 0; t < kFrames; ++t) {
        const std::vector<uint8_t> pixels = frame_of(t), marks = marks_of();
        check(vosrt_stream_expect(stream.get(), &given));
        vosrt_memory *memory = nullptr;
        check(vosrt_stream_memory(stream.get(), &memory));
        check(vosrt_cuda_memory_use_stream(memory, work));
        check(vosrt_cuda_queue_upload(queue.get(), bgr.get(), pixels.data(), pixels.size()));
        task.features = &given.features;
        CHECK(opened.network->enqueue(task, work).empty());
        vosrt_cuda_frame frame{};
        frame.struct_size = sizeof frame;
        frame.embedding = task.embedding;
        check(vosrt_cuda_memory_frame(memory, &frame));
        check(vosrt_stream_refine(stream.get(), &given));
        CHECK(ran_on == work);
        if (features != nullptr) opened.network->release(features);
        features = given.features;
        if (t == 0) (void)stream.add(vosrt::mask(marks.data(), kSide, kSide)).value();
        const auto taken = stream.result().value();
        all.insert(all.end(), taken.labels.all().begin(), taken.labels.all().end());
    }
    opened.network->release(features);
    cudaStreamOfWork = nullptr;
    return all;
}

void masks_are_refined_where_they_are(const vosrt::Bundle &bundle) {
    const int before = allocations;
    const std::vector<uint8_t> given = refined_on_the_gpu(bundle);
    CHECK(allocations - before == 4);  // the maps of two frames: no arrays of masks, frames or embeddings
    CHECK(given == refined_by_way_of_the_host(bundle));
    CHECK(std::count(given.begin(), given.end(), 1) > 0 && std::count(given.begin(), given.end(), 2) > 0);
}

}  // namespace

int main(int count, char **arguments) {
    CHECK(count == 3);
    write_clip();
    CHECK(run(arguments[1], "64") == 0);
    std::ifstream file("on_gpu.labels", std::ios::binary);
    const std::vector<char> labels{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    CHECK(labels.size() == kFrames * kSide * kSide);
    for (int t = 0; t < kFrames; ++t) {
        int both = 0, either = 0;
        for (int y = 0; y < kSide; ++y)
            for (int x = 0; x < kSide; ++x) {
                const bool found = labels[static_cast<size_t>((t * kSide + y) * kSide + x)] != 0, expected = is_inside(t, y, x);
                both += found && expected;
                either += found || expected;
            }
        CHECK(both > 0.7 * either);
    }
    CHECK(allocations == 0);               // the adapter has no arrays of its own: the network works between the program's
    CHECK(run(arguments[1], "136") == 1);  // the engine takes no such frames
    masks_are_refined_where_they_are(vosrt::Bundle::open(arguments[2]).value());
    for (const char *name : {"on_gpu.bgr", "on_gpu.mask", "on_gpu.engine", "on_gpu_masks.engine", "on_gpu_decoder.engine", "on_gpu.labels"}) std::remove(name);
    return 0;
}
