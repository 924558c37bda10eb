// Once a video runs, a frame allocates nothing and the memory's size stays as it is.
#include "check.hpp"
#include "counting_allocator.hpp"

int main() {
    constexpr int kHeight = 15, kWidth = 26, kChannels = 48, kOutHeight = 117, kOutWidth = 203;
    vosrt_memory_options options = vosrt::memory_options();
    options.height = kHeight;
    options.width = kWidth;
    options.channels = kChannels;
    vosrt_memory *memory = nullptr;
    const int64_t before_create = allocations;
    CHECK(vosrt_memory_create(&options, &memory) == VOSRT_OK);
    CHECK(allocations > before_create);  // the counter sees the library

    std::mt19937 random(1);
    std::vector<std::vector<float>> embeddings;
    for (int i = 0; i < 5; ++i) embeddings.push_back(random_embedding(random, kHeight * kWidth, kChannels));
    std::vector<uint8_t> mask(kHeight * kWidth), labels(kOutHeight * kOutWidth);
    std::vector<float> confidence(kOutHeight * kOutWidth);
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<uint8_t>(1 + i % 40);
    CHECK(vosrt_memory_push(memory, embeddings[0].data()) == VOSRT_OK);
    CHECK(vosrt_memory_annotate(memory, mask.data(), kHeight, kWidth, kWidth) == VOSRT_OK);

    const auto step = [&](int t) {
        CHECK(vosrt_memory_push(memory, embeddings[t % 5].data()) == VOSRT_OK);
        CHECK(vosrt_memory_labels(memory, kOutHeight, kOutWidth, labels.data(), confidence.data()) == VOSRT_OK);
    };
    for (int t = 0; t < 3; ++t) step(t);
    vosrt_memory_info before{}, after{};
    before.struct_size = after.struct_size = sizeof before;
    CHECK(vosrt_memory_get_info(memory, &before) == VOSRT_OK);
    const int64_t counted = allocations;
    for (int t = 3; t < 200; ++t) step(t);
    CHECK(allocations == counted);
    CHECK(vosrt_memory_get_info(memory, &after) == VOSRT_OK);
    CHECK(after.bytes == before.bytes && after.frames == before.frames + 197);
    vosrt_memory_destroy(memory);
    return 0;
}
