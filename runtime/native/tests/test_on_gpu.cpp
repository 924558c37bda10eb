// examples/vos_embed/vos_on_gpu.cpp as it is, on the emulated libvosrt_cuda and stand-ins for TensorRT and CUDA (tests/tensorrt).
//
//     test_on_gpu BUNDLE
#define main vos_on_gpu
#include "../examples/vos_embed/vos_on_gpu.cpp"
#undef main

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

}  // namespace

int main(int count, char **arguments) {
    CHECK(count == 2);
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
    for (const char *name : {"on_gpu.bgr", "on_gpu.mask", "on_gpu.engine", "on_gpu.labels"}) std::remove(name);
    return 0;
}
