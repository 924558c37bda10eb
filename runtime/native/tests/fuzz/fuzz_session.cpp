// Whatever the bytes, loading a session returns or refuses, and a memory that was loaded can be used.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "fuzz.hpp"
#include "sha256.hpp"
#include "vosrt.h"

namespace {

constexpr size_t kHeader = 56, kHashAt = 24, kGridAt = kHeader + 32 + 12;
constexpr int32_t kHeight = 3, kWidth = 4, kChannels = 8;

// Gives the bytes the size and the hash that they need to be read at all.
Input resealed(const uint8_t *data, size_t size) {
    Input out(data, data + size);
    if (size < kHeader) return out;
    const uint64_t total = size;
    std::memcpy(out.data() + 16, &total, sizeof total);
    vosrt::Sha256 hash;
    hash.update({out.data() + kHeader, size - kHeader});
    const auto digest = hash.finish();
    std::copy(digest.begin(), digest.end(), out.begin() + kHashAt);
    return out;
}

// Sessions may ask for memory in proportion to their size and context; here they may not ask for much.
bool is_small(const Input &session) {
    int32_t grid[4] = {};  // height, width, channels, context
    if (session.size() < kGridAt + sizeof grid) return true;
    std::memcpy(grid, session.data() + kGridAt, sizeof grid);
    double product = 1;
    for (const int32_t extent : grid) product *= std::max(1.0, static_cast<double>(extent));
    return product < 1e5;
}

void check(bool holds) {
    if (!holds) std::abort();
}

void use(vosrt_memory *memory) {
    vosrt_memory_info info{};
    info.struct_size = sizeof info;
    check(vosrt_memory_get_info(memory, &info) == VOSRT_OK);
    const std::vector<float> embedding(static_cast<size_t>(info.height) * info.width * info.channels, 0.5f);
    check(vosrt_memory_push(memory, embedding.data()) == VOSRT_OK);
    std::vector<uint8_t> labels(9 * 7), mask(9 * 7, 3);
    std::vector<float> confidence(9 * 7);
    check(vosrt_memory_labels(memory, 9, 7, labels.data(), confidence.data()) == VOSRT_OK);
    check(vosrt_memory_annotate(memory, mask.data(), 9, 7, 7) == VOSRT_OK);
    check(vosrt_memory_push(memory, embedding.data()) == VOSRT_OK);
    check(vosrt_memory_remove(memory, 3) == VOSRT_OK);
    size_t size = 0;
    check(vosrt_memory_save(memory, nullptr, nullptr, 0, &size) == VOSRT_BUFFER_TOO_SMALL);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const Input session = resealed(data, size);
    if (!is_small(session)) return 0;
    const vosrt_load_options options{sizeof options, VOSRT_PRECISION_AUTO, VOSRT_ISA_AUTO, 1};
    vosrt_session extra{};
    extra.struct_size = sizeof extra;
    vosrt_memory *memory = nullptr;
    if (vosrt_memory_load(session.data(), session.size(), &options, &memory, &extra) == VOSRT_OK) {
        if (extra.annotation != nullptr) {  // all of it lies within the session
            const size_t bytes = static_cast<size_t>(extra.frame_height) * extra.frame_width;
            check(extra.annotation >= session.data() && extra.annotation + bytes <= session.data() + session.size());
        }
        use(memory);
    }
    vosrt_memory_destroy(memory);
    return 0;
}

std::vector<Input> fuzz_seeds() {
    std::vector<Input> seeds;
    for (const vosrt_isa isa : {VOSRT_ISA_GENERIC, VOSRT_ISA_AMX_EMULATED}) {
        vosrt_memory_options options{};
        options.struct_size = sizeof options;
        check(vosrt_memory_options_init(&options) == VOSRT_OK);
        options.height = kHeight;
        options.width = kWidth;
        options.channels = kChannels;
        options.context = 2;
        options.threads = 1;
        options.isa = isa;
        vosrt_memory *memory = nullptr;
        check(vosrt_memory_create(&options, &memory) == VOSRT_OK);
        std::vector<float> embedding(kHeight * kWidth * kChannels);
        std::vector<uint8_t> mask(kHeight * kWidth);
        for (int t = 0; t < 5; ++t) {
            for (size_t i = 0; i < embedding.size(); ++i) embedding[i] = static_cast<float>((i * 7 + t) % 5) * 0.1f;
            check(vosrt_memory_push(memory, embedding.data()) == VOSRT_OK);
            for (size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<uint8_t>(i % 3 == 0 ? t + 1 : 0);
            if (t % 2 == 0) check(vosrt_memory_annotate(memory, mask.data(), kHeight, kWidth, kWidth) == VOSRT_OK);
        }
        vosrt_session extra{};
        extra.struct_size = sizeof extra;
        extra.frame_height = kHeight;
        extra.frame_width = kWidth;
        extra.annotation = mask.data();
        size_t size = 0;
        vosrt_memory_save(memory, &extra, nullptr, 0, &size);
        Input session(size);
        check(vosrt_memory_save(memory, &extra, session.data(), size, &size) == VOSRT_OK);
        vosrt_memory_destroy(memory);
        check(vosrt_memory_load(session.data(), session.size(), nullptr, &memory, &extra) == VOSRT_OK);
        vosrt_memory_destroy(memory);
        seeds.push_back(std::move(session));
    }
    return seeds;
}
