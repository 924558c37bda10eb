// The CUDA kernels, thread by thread on the processor, give what libvosrt gives in the same number format: soft masks, labels, what was
// attended, values. Every variant of the match kernel is run (how many queries a block has, how long its lists are), and every option.
#include <dlfcn.h>

#include <cstring>
#include <string>

#include "check.hpp"
#include "vosrt_cuda.h"

namespace {

// The processor's library, beside the one that this program is linked with.
struct Processor {
    void *library = dlopen(VOSRT_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    template <class Function>
    Function *function(const char *name) const {
        auto *found = reinterpret_cast<Function *>(dlsym(library, name));
        CHECK(found != nullptr);
        return found;
    }
};
#define OF(processor, name) (processor).function<decltype(name)>(#name)

constexpr int kFrames = 5, kOutHeight = 37, kOutWidth = 41;

struct Frame {
    std::vector<float> soft, similarity, confidence;
    std::vector<int32_t> frame, cell;
    std::vector<uint8_t> labels, ids;
};

template <class Push>
std::vector<Frame> track(const Scenario &scenario, int isa, const Push &push, bool on_processor) {
    static const Processor processor;
    const auto of = [&](auto own, const char *name) {
        return on_processor ? processor.function<std::remove_pointer_t<decltype(own)>>(name) : own;
    };
    const vosrt_memory_options options = scenario.options(isa);
    vosrt_memory *memory = nullptr;
    CHECK(of(&vosrt_memory_create, "vosrt_memory_create")(&options, &memory) == VOSRT_OK);

    std::mt19937 random(7);
    const int cells = scenario.height * scenario.width;
    const auto base = random_embedding(random, cells, scenario.channels);
    std::vector<uint8_t> mask(cells, 0);
    std::vector<Frame> all;
    for (int t = 0; t < kFrames; ++t) {
        const auto embedding = random_embedding(random, cells, scenario.channels, &base);
        push(memory, embedding);
        if (t == 0 || (t == 2 && cells > 6)) {
            // Six objects at once make the soft masks grow.
            for (int cell = 0; cell < cells; ++cell)
                mask[cell] = static_cast<uint8_t>(t == 0 ? (cell % 3 == 0) : cell % 7 == 0 ? 0
                                                                                           : 1 + cell % 7);
            CHECK(of(&vosrt_memory_annotate, "vosrt_memory_annotate")(memory, mask.data(), scenario.height, scenario.width,
                                                                      scenario.width) == VOSRT_OK);
        }
        if (t == 3 && cells > 6) CHECK(of(&vosrt_memory_remove, "vosrt_memory_remove")(memory, 3) == VOSRT_OK);
        Frame frame;
        frame.ids.resize(255);
        int32_t count = 0, references = 0;
        CHECK(of(&vosrt_memory_object_ids, "vosrt_memory_object_ids")(memory, frame.ids.data(), &count) == VOSRT_OK);
        frame.ids.resize(count);
        frame.soft.resize(static_cast<size_t>(cells) * (1 + count));
        CHECK(of(&vosrt_memory_soft_masks, "vosrt_memory_soft_masks")(memory, frame.soft.data()) == VOSRT_OK);
        CHECK(of(&vosrt_memory_top_k_references, "vosrt_memory_top_k_references")(memory, &references) == VOSRT_OK);
        const size_t neighbours = static_cast<size_t>(references) * cells * scenario.top_k;
        frame.similarity.resize(neighbours + 1), frame.frame.resize(neighbours + 1), frame.cell.resize(neighbours + 1);
        CHECK(of(&vosrt_memory_top_k, "vosrt_memory_top_k")(memory, frame.similarity.data(), frame.frame.data(),
                                                            frame.cell.data()) == VOSRT_OK);
        frame.labels.resize(kOutHeight * kOutWidth), frame.confidence.resize(kOutHeight * kOutWidth);
        CHECK(of(&vosrt_memory_labels, "vosrt_memory_labels")(memory, kOutHeight, kOutWidth, frame.labels.data(),
                                                              frame.confidence.data()) == VOSRT_OK);
        all.push_back(std::move(frame));
    }
    of(&vosrt_memory_destroy, "vosrt_memory_destroy")(memory);
    return all;
}

float difference(float a, float b) { return std::isnan(a) && std::isnan(b) ? 0.0f : std::fabs(a - b); }

void compare(const std::vector<Frame> &expected, const std::vector<Frame> &given) {
    // Number formats agree to the bit, so only sums in another order differ: a neighbour may change places with one as near.
    constexpr float kSimilarity = 2e-6f, kSoft = 2e-3f;
    size_t swapped = 0, all = 0, relabelled = 0, pixels = 0;
    for (size_t t = 0; t < expected.size(); ++t) {
        const Frame &a = expected[t], &b = given[t];
        CHECK(a.ids == b.ids);
        CHECK(a.soft.size() == b.soft.size() && a.cell.size() == b.cell.size());
        for (size_t i = 0; i + 1 < a.cell.size(); ++i) {
            CHECK(difference(a.similarity[i], b.similarity[i]) < kSimilarity);
            swapped += a.cell[i] != b.cell[i] || a.frame[i] != b.frame[i];
            ++all;
        }
        for (size_t i = 0; i < a.soft.size(); ++i) CHECK(difference(a.soft[i], b.soft[i]) < kSoft);
        for (size_t i = 0; i < a.labels.size(); ++i) {
            relabelled += a.labels[i] != b.labels[i];
            ++pixels;
            if (a.labels[i] == b.labels[i]) CHECK(difference(a.confidence[i], b.confidence[i]) < kSoft);
        }
    }
    CHECK(1000 * swapped <= all);
    CHECK(1000 * relabelled <= pixels);
}

void push_from_host(vosrt_memory *memory, const std::vector<float> &embedding) {
    CHECK(vosrt_memory_push(memory, embedding.data()) == VOSRT_OK);
}

// ---- what vosrt_cuda.h adds ------------------------------------------------------------------------------

template <class T>
struct DeviceArray {
    void *memory = nullptr;
    explicit DeviceArray(size_t count) { CHECK(vosrt_cuda_allocate(0, count * sizeof(T), "a test", &memory) == VOSRT_OK); }
    DeviceArray(vosrt_cuda_queue *queue, const std::vector<T> &values) : DeviceArray(values.size()) {
        CHECK(vosrt_cuda_queue_upload(queue, memory, values.data(), values.size() * sizeof(T)) == VOSRT_OK);
        CHECK(vosrt_cuda_queue_wait(queue) == VOSRT_OK);
    }
    ~DeviceArray() { vosrt_cuda_free(memory); }
    DeviceArray(const DeviceArray &) = delete;
    T *data() const { return static_cast<T *>(memory); }
    std::vector<T> host(vosrt_cuda_queue *queue, size_t count) const {
        std::vector<T> out(count);
        CHECK(vosrt_cuda_queue_download(queue, out.data(), memory, count * sizeof(T)) == VOSRT_OK);
        CHECK(vosrt_cuda_queue_wait(queue) == VOSRT_OK);
        return out;
    }
};

int64_t free_bytes() {
    vosrt_cuda_device info{};
    info.struct_size = sizeof info;
    CHECK(vosrt_cuda_device_info(0, &info) == VOSRT_OK);
    return info.free_bytes;
}

// Recorded frames give what pushed ones give; one recording fits all frames until the objects change.
void check_recorded_frames() {
    constexpr int kHeight = 9, kWidth = 12, kCells = kHeight * kWidth, kChannels = 64, kPixels = kOutHeight * kOutWidth;
    vosrt_memory_options options = vosrt::memory_options();
    options.height = kHeight, options.width = kWidth, options.channels = kChannels;
    options.context = 3, options.radius = 3;
    vosrt_memory *pushed = nullptr, *queued = nullptr;
    vosrt_cuda_queue *queue = nullptr;
    CHECK(vosrt_memory_create(&options, &pushed) == VOSRT_OK && vosrt_memory_create(&options, &queued) == VOSRT_OK);
    CHECK(vosrt_cuda_queue_create(0, &queue) == VOSRT_OK);
    CHECK(vosrt_cuda_memory_use_stream(queued, vosrt_cuda_queue_stream(queue)) == VOSRT_OK);
    DeviceArray<float> embedding(kCells * kChannels), confidence(kPixels);
    DeviceArray<uint8_t> labels(kPixels);
    DeviceArray<uint64_t> totals(512);
    vosrt_cuda_frame frame{};
    frame.struct_size = sizeof frame;
    frame.height = kOutHeight, frame.width = kOutWidth;
    frame.embedding = embedding.data();
    frame.labels = labels.data(), frame.confidence = confidence.data(), frame.totals = totals.data();

    std::mt19937 random(3);
    const auto base = random_embedding(random, kCells, kChannels);
    std::vector<uint8_t> mask(kCells), expected(kPixels);
    std::vector<float> expected_confidence(kPixels);
    int64_t recordings = 0, steady = 0;
    for (int t = 0; t < 14; ++t) {
        const auto values = random_embedding(random, kCells, kChannels, &base);
        CHECK(vosrt_memory_push(pushed, values.data()) == VOSRT_OK);
        CHECK(vosrt_memory_labels(pushed, kOutHeight, kOutWidth, expected.data(), expected_confidence.data()) == VOSRT_OK);
        CHECK(vosrt_cuda_queue_upload(queue, embedding.data(), values.data(), values.size() * sizeof(float)) == VOSRT_OK);
        CHECK(vosrt_cuda_memory_frame(queued, &frame) == VOSRT_OK);
        CHECK(labels.host(queue, kPixels) == expected);
        CHECK(confidence.host(queue, kPixels) == expected_confidence);
        const auto sums = totals.host(queue, 512);
        uint64_t pixels = 0;
        for (int id = 0; id < 256; ++id) pixels += sums[2 * id + 1];
        CHECK(pixels == kPixels);
        if (t == 0 || t == 6)
            for (vosrt_memory *memory : {pushed, queued}) {
                for (int cell = 0; cell < kCells; ++cell) mask[cell] = static_cast<uint8_t>(cell % 4 == 0 ? 1 + t : 0);
                CHECK(vosrt_memory_annotate(memory, mask.data(), kHeight, kWidth, kWidth) == VOSRT_OK);
            }
        CHECK(vosrt_cuda_memory_recordings(queued, &recordings) == VOSRT_OK);
        CHECK(recordings == (t < 3 ? 0 : t < 9 ? 1
                                               : 2));
        if (t == 10) steady = free_bytes();
    }
    CHECK(free_bytes() == steady);

    // V_q: the values of the second reference, read with its neighbours.
    constexpr int kValues = 5, kSlots = 3;
    int32_t references = 0;
    CHECK(vosrt_memory_top_k_references(queued, &references) == VOSRT_OK && references == 2);
    std::vector<float> similarity(2 * kCells * 10);
    std::vector<int32_t> of_frame(similarity.size()), of_cell(similarity.size());
    CHECK(vosrt_memory_top_k(queued, similarity.data(), of_frame.data(), of_cell.data()) == VOSRT_OK);
    std::vector<float> first(kCells * kValues), recent(kSlots * kCells * kValues);
    for (auto *values : {&first, &recent})
        for (float &value : *values) value = static_cast<float>(random() % 1000) / 1000;
    DeviceArray<float> at_reference(queue, first), at_recent(queue, recent), out(kCells * kValues);
    CHECK(vosrt_cuda_memory_values(queued, 1, at_reference.data(), at_recent.data(), kSlots, kValues, out.data()) == VOSRT_OK);
    const auto read = out.host(queue, kCells * kValues);
    for (int cell = 0; cell < kCells; ++cell)
        for (int c = 0; c < kValues; ++c) {
            double sum = 0, total = 0;
            for (int i = (kCells + cell) * 10; i < (kCells + cell + 1) * 10; ++i) {
                const double weight = std::exp((similarity[i] - similarity[(kCells + cell) * 10]) / 0.05);
                const float *from = of_frame[i] == 6 ? first.data() : recent.data() + of_frame[i] % kSlots * kCells * kValues;
                sum += weight * from[of_cell[i] * kValues + c];
                total += weight;
            }
            CHECK(std::fabs(read[cell * kValues + c] - sum / total) < 1e-5);
        }
    CHECK(vosrt_cuda_memory_values(queued, 2, at_reference.data(), at_recent.data(), kSlots, kValues, out.data()) == VOSRT_INVALID_ARGUMENT);
    vosrt_memory_destroy(pushed);
    vosrt_memory_destroy(queued);
    vosrt_cuda_queue_destroy(queue);
}

// Masks as planes: drawn at any size, taken back, labelled, and refined by logits that say nothing or all there is to say.
// tests/parity/test_cuda_refinement.py compares the arithmetic with the NumPy reference.
void check_planes() {
    constexpr int kHeight = 9, kWidth = 12, kCells = kHeight * kWidth, kPixels = kOutHeight * kOutWidth, kIds = 6;
    vosrt_memory_options options = vosrt::memory_options();
    options.height = kHeight, options.width = kWidth, options.channels = 32, options.context = 2, options.align_corners = 0;
    vosrt_memory *memory = nullptr;
    vosrt_cuda_queue *queue = nullptr;
    CHECK(vosrt_memory_create(&options, &memory) == VOSRT_OK && vosrt_cuda_queue_create(0, &queue) == VOSRT_OK);
    DeviceArray<float> planes((1 + kIds) * kPixels), confidence(kPixels), logits(kIds * 10 * 11);
    DeviceArray<uint8_t> labels(kPixels);
    CHECK(vosrt_cuda_memory_planes(memory, planes.data(), kHeight, kWidth) == VOSRT_INVALID_ARGUMENT);
    std::mt19937 random(3);
    const auto base = random_embedding(random, kCells, 32);
    std::vector<uint8_t> mask(kCells);
    for (int cell = 0; cell < kCells; ++cell) mask[cell] = static_cast<uint8_t>(cell / 8 % 7 * 2);
    vosrt_cuda_frame frame{};
    frame.struct_size = sizeof frame;
    frame.height = kOutHeight, frame.width = kOutWidth;
    frame.labels = labels.data(), frame.confidence = confidence.data();
    const auto soft_masks = [&] {
        std::vector<float> soft(kCells * (1 + kIds));
        CHECK(vosrt_memory_soft_masks(memory, soft.data()) == VOSRT_OK);
        return soft;
    };
    const auto say = [&](float background, float first) {
        std::vector<float> values(kIds * 10 * 11, background);
        std::fill_n(values.begin(), 10 * 11, first);
        CHECK(vosrt_cuda_queue_upload(queue, logits.data(), values.data(), values.size() * sizeof(float)) == VOSRT_OK);
    };
    int64_t steady = 0;
    for (int t = 0; t < 5; ++t) {
        CHECK(vosrt_memory_push(memory, random_embedding(random, kCells, 32, &base).data()) == VOSRT_OK);
        if (t == 0) CHECK(vosrt_memory_annotate(memory, mask.data(), kHeight, kWidth, kWidth) == VOSRT_OK);
        if (t == 2) steady = free_bytes();
        // At the grid's size: there and back, and a transposition.
        const auto soft = soft_masks();
        CHECK(vosrt_cuda_memory_planes(memory, planes.data(), kHeight, kWidth) == VOSRT_OK);
        const auto drawn = planes.host(queue, (1 + kIds) * kCells);
        for (int cell = 0; cell < kCells; ++cell)
            for (int n = 0; n <= kIds; ++n) CHECK(drawn[n * kCells + cell] == soft[cell * (1 + kIds) + n]);
        CHECK(vosrt_cuda_memory_set_planes(memory, planes.data(), kHeight, kWidth) == VOSRT_OK);
        CHECK(soft_masks() == soft);
        // At another size: labels as those of the memory.
        std::vector<uint8_t> expected(kPixels);
        std::vector<float> expected_confidence(kPixels);
        CHECK(vosrt_memory_labels(memory, kOutHeight, kOutWidth, expected.data(), expected_confidence.data()) == VOSRT_OK);
        CHECK(vosrt_cuda_memory_planes(memory, planes.data(), kOutHeight, kOutWidth) == VOSRT_OK);
        CHECK(vosrt_cuda_memory_show(memory, planes.data(), kOutHeight, kOutWidth) == VOSRT_OK);
        CHECK(vosrt_cuda_memory_labels(memory, &frame) == VOSRT_OK);
        CHECK(labels.host(queue, kPixels) == expected && confidence.host(queue, kPixels) == expected_confidence);
        say(0, 30);
        CHECK(vosrt_cuda_memory_refine(memory, logits.data(), 10, 11, 1, planes.data(), kOutHeight, kOutWidth) == VOSRT_OK);
        CHECK(vosrt_cuda_memory_show(memory, planes.data(), kOutHeight, kOutWidth) == VOSRT_OK);
        CHECK(vosrt_cuda_memory_labels(memory, &frame) == VOSRT_OK);
        CHECK(labels.host(queue, kPixels) == std::vector<uint8_t>(kPixels, 2));
        say(-90, -90);
        CHECK(vosrt_cuda_memory_refine(memory, logits.data(), 5, 3, 0, planes.data(), kOutHeight, kOutWidth) == VOSRT_OK);
        const auto refined = planes.host(queue, (1 + kIds) * kPixels);
        for (int i = 0; i < kPixels; ++i) CHECK(refined[i] > 0.9999f);
    }
    CHECK(free_bytes() == steady);
    CHECK(vosrt_cuda_memory_set_planes(memory, planes.data(), 0, 3) == VOSRT_INVALID_ARGUMENT);
    CHECK(vosrt_cuda_memory_show(memory, planes.data(), 0, 3) == VOSRT_INVALID_ARGUMENT);
    vosrt_memory_destroy(memory);
    vosrt_cuda_queue_destroy(queue);
}

void check_resizing() {
    vosrt_cuda_queue *queue = nullptr;
    CHECK(vosrt_cuda_queue_create(0, &queue) == VOSRT_OK);
    std::mt19937 random(5);
    const int sizes[][4] = {{1, 1, 4, 5}, {7, 9, 7, 9}, {11, 6, 5, 13}, {30, 41, 16, 9}};
    for (const auto &[height, width, to_height, to_width] : sizes) {
        std::vector<uint8_t> source(3 * height * width), expected(3 * to_height * to_width);
        for (uint8_t &value : source) value = static_cast<uint8_t>(random());
        CHECK(vosrt_resize_bgr(source.data(), height, width, 3 * width, expected.data(), to_height, to_width, 3 * to_width) == VOSRT_OK);
        const DeviceArray<uint8_t> from(queue, source), to(expected.size());
        CHECK(vosrt_cuda_queue_resize_bgr(queue, from.data(), height, width, 3 * width, to.data(), to_height, to_width) == VOSRT_OK);
        CHECK(to.host(queue, expected.size()) == expected);
    }
    vosrt_cuda_queue_destroy(queue);
}

void check_failures() {
    vosrt_memory_options options = vosrt::memory_options();
    options.height = 9, options.width = 12, options.channels = 32;
    vosrt_memory *memory = nullptr;
    const auto refused = [&](const char *gpu, vosrt_status status, const char *words) {
        setenv("VOSRT_CUDA_EMULATED", gpu, 1);
        CHECK(vosrt_memory_create(&options, &memory) == status && memory == nullptr);
        CHECK(std::strstr(vosrt_last_error(), words) != nullptr);
    };
    refused("none", VOSRT_UNSUPPORTED, "no NVIDIA driver");
    refused("old", VOSRT_UNSUPPORTED, "upgrade the driver");
    refused("memory=100000", VOSRT_OUT_OF_MEMORY, "cudaMalloc of");
    refused("shared=1000", VOSRT_UNSUPPORTED, "bytes of shared memory");
    options.device = 3;
    refused("", VOSRT_INVALID_ARGUMENT, "CUDA device 3 was asked for; there are 1");
    options.device = 0, options.precision = VOSRT_PRECISION_FP32;
    refused("", VOSRT_UNSUPPORTED, "computes in bf16");
    options.precision = VOSRT_PRECISION_AUTO;

    // What does not fit is refused, and the memory goes on as it was.
    std::mt19937 random(3);
    const auto embedding = random_embedding(random, 9 * 12, 32);
    std::vector<uint8_t> mask(9 * 12, 1), labels(9 * 12);
    CHECK(vosrt_memory_create(&options, &memory) == VOSRT_OK);
    CHECK(vosrt_memory_push(memory, embedding.data()) == VOSRT_OK);
    CHECK(vosrt_memory_annotate(memory, mask.data(), 9, 12, 12) == VOSRT_OK);
    CHECK(vosrt_memory_push(memory, embedding.data()) == VOSRT_OK);
    vosrt_memory_info info{};
    info.struct_size = sizeof info;
    CHECK(vosrt_memory_get_info(memory, &info) == VOSRT_OK && info.isa == VOSRT_ISA_CUDA);
    setenv("VOSRT_CUDA_EMULATED", ("memory=" + std::to_string(info.bytes + 100)).c_str(), 1);
    mask[5] = 2;
    CHECK(vosrt_memory_annotate(memory, mask.data(), 9, 12, 12) == VOSRT_OUT_OF_MEMORY);
    CHECK(vosrt_memory_push(memory, embedding.data()) == VOSRT_OK);
    setenv("VOSRT_CUDA_EMULATED", "", 1);
    CHECK(vosrt_memory_labels(memory, 9, 12, labels.data(), nullptr) == VOSRT_OK);
    CHECK(labels == std::vector<uint8_t>(9 * 12, 1));
    size_t size = 0;
    CHECK(vosrt_memory_save(memory, nullptr, nullptr, 0, &size) == VOSRT_BUFFER_TOO_SMALL);
    std::vector<uint8_t> session(size);
    CHECK(vosrt_memory_save(memory, nullptr, session.data(), size, &size) == VOSRT_OK && size == session.size());
    vosrt_memory_destroy(memory);
}

}  // namespace

int main(int argc, char **argv) {
    const Scenario scenarios[] = {
        {1, 1, 1, 3, 10, 2, 1, 0, ""},
        {1, 9, 5, 2, 3, 2, 1, 1, ""},
        {13, 19, 33, 3, 10, 4, 1, 0, ""},
        {13, 19, 33, 3, 10, 4, 1, 1, "shared=46000"},
        {13, 19, 33, 3, 10, 4, 1, 0, "shared=41500"},
        {9, 35, 64, 4, 10, 12, 1, 1, ""},
        {17, 8, 40, 4, 5, 3, 0, 0, ""},
        {12, 11, 130, 2, 64, 2.5f, 0, 1, ""},
        {12, 11, 130, 2, 20, 2.5f, 1, 0, "shared=55000"},
        {6, 7, 31, 5, 1, 50, 1, 1, "shared=39500"},
        {7, 10, 32, 3, 13, 4, 1, 0, "shared=42000"},
        {20, 21, 32, 0, 4, 3, 1, 1, ""},
        {20, 21, 32, 4, 10, 4, 1, 0, "shared=40000"},  // so many patches that a job has two recent frames
    };
    int number = 0;
    for (const Scenario &scenario : scenarios) {
        ++number;
        if (argc > 1 && std::atoi(argv[1]) != number) continue;
        std::printf("scenario %d\n", number);
        std::fflush(stdout);
        setenv("VOSRT_CUDA_EMULATED", scenario.gpu, 1);
        const Processor processor;
        const auto push = [&](vosrt_memory *memory, const std::vector<float> &embedding) {
            CHECK(OF(processor, vosrt_memory_push)(memory, embedding.data()) == VOSRT_OK);
        };
        compare(track(scenario, VOSRT_ISA_AMX_EMULATED, push, true), track(scenario, VOSRT_ISA_AUTO, push_from_host, false));
    }
    if (argc > 1) return 0;
    setenv("VOSRT_CUDA_EMULATED", "", 1);
    check_recorded_frames();
    check_planes();
    check_resizing();
    check_failures();
    return 0;
}
