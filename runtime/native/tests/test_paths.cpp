// Every instruction-set path of this processor gives what the portable path gives, on shapes that fit no vector length.
// The emulated AMX path runs everywhere, so the tile logic is held to the others even where no AMX is.
#include <array>
#include <cstring>
#include <string>

#include "check.hpp"

namespace {

// Soft masks of all frames of a video with a second object from frame 2 on.
std::vector<float> track(const Scenario &scenario, vosrt_isa isa, int threads) {
    const vosrt_memory_options options = scenario.options(isa, threads);
    vosrt_memory *memory = nullptr;
    CHECK(vosrt_memory_create(&options, &memory) == VOSRT_OK);

    std::mt19937 random(7);
    const int cells = scenario.height * scenario.width;
    const auto base = random_embedding(random, cells, scenario.channels);
    std::vector<uint8_t> mask(cells, 0);
    std::vector<float> all;
    for (int t = 0; t < 6; ++t) {
        const auto embedding = random_embedding(random, cells, scenario.channels, &base);
        CHECK(vosrt_memory_push(memory, embedding.data()) == VOSRT_OK);
        if (t == 0 || (t == 2 && cells > 1)) {
            for (int cell = 0; cell < cells; ++cell) mask[cell] = (cell * 7 + t) % 3 == 0 ? 1 + t : 0;
            CHECK(vosrt_memory_annotate(memory, mask.data(), scenario.height, scenario.width, scenario.width) == VOSRT_OK);
        }
        uint8_t ids[255];
        int32_t count = 0;
        CHECK(vosrt_memory_object_ids(memory, ids, &count) == VOSRT_OK);
        const size_t at = all.size();
        all.resize(at + static_cast<size_t>(cells) * (1 + count));
        CHECK(vosrt_memory_soft_masks(memory, all.data() + at) == VOSRT_OK);
    }
    vosrt_memory_destroy(memory);
    return all;
}

float largest_difference(const std::vector<float> &a, const std::vector<float> &b) {
    CHECK(a.size() == b.size());
    float largest = 0;
    for (size_t i = 0; i < a.size(); ++i) largest = std::fmax(largest, std::fabs(a[i] - b[i]));
    return largest;
}

float mean_difference(const std::vector<float> &a, const std::vector<float> &b) {
    CHECK(a.size() == b.size());
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += std::fabs(a[i] - b[i]);
    return static_cast<float>(sum / static_cast<double>(a.size()));
}

}  // namespace

int main() {
    const Scenario scenarios[] = {
        {1, 1, 1, 3, 10, 2, 1},
        {1, 9, 5, 2, 3, 2, 1},
        {13, 19, 33, 3, 10, 4, 1},
        {9, 35, 64, 20, 10, 12, 1},
        {17, 8, 40, 4, 5, 3, 0},
        {12, 22, 130, 2, 64, 2.5f, 0},
        {6, 7, 31, 5, 1, 50, 1},
        {20, 21, 96, 0, 4, 3, 1},
    };
    // Rounding to bf16 may swap near-equal neighbours, which a single kept neighbour shows in full: bf16 paths are held to
    // each other cell by cell and to fp32 in the mean.
    constexpr float kSameFormat = 1e-5f, kBetweenFormats = 0.01f;
    for (const Scenario &scenario : scenarios) {
        const auto fp32 = track(scenario, VOSRT_ISA_GENERIC, 1);
        const auto bf16 = track(scenario, VOSRT_ISA_AMX_EMULATED, 1);
        CHECK(mean_difference(fp32, bf16) < kBetweenFormats);
        CHECK(track(scenario, VOSRT_ISA_GENERIC, 3) == fp32);
        for (const vosrt_isa isa : {VOSRT_ISA_AVX2, VOSRT_ISA_AVX512, VOSRT_ISA_NEON, VOSRT_ISA_AVX512_BF16, VOSRT_ISA_AMX}) {
            if (!vosrt_isa_available(isa)) {
                std::printf("skipped: this processor lacks %s\n", vosrt_isa_name(isa));
                continue;
            }
            const bool is_bf16 = isa == VOSRT_ISA_AVX512_BF16 || isa == VOSRT_ISA_AMX;
            const float difference = largest_difference(track(scenario, isa, 2), is_bf16 ? bf16 : fp32);
            std::printf("%d x %d x %d %-10s differs by %.2g\n", scenario.height, scenario.width, scenario.channels,
                        vosrt_isa_name(isa), static_cast<double>(difference));
            CHECK(difference < kSameFormat);
        }
    }
    return 0;
}
