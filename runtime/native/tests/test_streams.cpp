// Handles are independent: several videos on several threads give what each gives alone.
#include <string>
#include <thread>

#include "check.hpp"

namespace {

constexpr int kHeight = 11, kWidth = 14, kChannels = 32, kFrames = 8;

std::vector<uint8_t> track(unsigned seed) {
    vosrt_memory_options options = vosrt::memory_options();
    options.height = kHeight;
    options.width = kWidth;
    options.channels = kChannels;
    options.threads = 2;
    vosrt_memory *memory = nullptr;
    CHECK(vosrt_memory_create(&options, &memory) == VOSRT_OK);
    std::mt19937 random(seed);
    const auto base = random_embedding(random, kHeight * kWidth, kChannels);
    std::vector<uint8_t> mask(kHeight * kWidth), labels(kFrames * 88 * 112);
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<uint8_t>(i % (seed + 2));
    for (int t = 0; t < kFrames; ++t) {
        const auto embedding = random_embedding(random, kHeight * kWidth, kChannels, &base);
        CHECK(vosrt_memory_push(memory, embedding.data()) == VOSRT_OK);
        if (t == 0) CHECK(vosrt_memory_annotate(memory, mask.data(), kHeight, kWidth, kWidth) == VOSRT_OK);
        CHECK(vosrt_memory_labels(memory, 88, 112, labels.data() + t * 88 * 112, nullptr) == VOSRT_OK);
    }
    // An error in one thread is not seen in another.
    CHECK(vosrt_memory_remove(memory, static_cast<int32_t>(200 + seed)) == VOSRT_INVALID_ARGUMENT);
    CHECK(std::string(vosrt_last_error()).find(std::to_string(200 + seed)) != std::string::npos);
    vosrt_memory_destroy(memory);
    return labels;
}

void check_states() {
    vosrt_object two[2]{};
    two[0].struct_size = two[1].struct_size = sizeof *two;
    two[1].state = VOSRT_STATE_UNSURE;
    CHECK(vosrt::Objects(two, 2).state(0) == VOSRT_STATE_PRESENT && vosrt::Objects(two, 2).state(1) == VOSRT_STATE_UNSURE);
    two[0].struct_size = offsetof(vosrt_object, state);  // of an older library
    two[0].state = VOSRT_STATE_UNSURE;
    CHECK(vosrt::Objects(two, 1).state(0) == VOSRT_STATE_LOST);
}

}  // namespace

int main() {
    check_states();
    constexpr unsigned kStreams = 4;
    std::vector<std::vector<uint8_t>> alone, together(kStreams);
    for (unsigned i = 0; i < kStreams; ++i) alone.push_back(track(i));
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < kStreams; ++i) threads.emplace_back([&together, i] { together[i] = track(i); });
    for (auto &thread : threads) thread.join();
    CHECK(together == alone);
    return 0;
}
