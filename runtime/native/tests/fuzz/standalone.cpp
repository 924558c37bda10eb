// Runs a fuzz target without libFuzzer: sound inputs and those of a corpus, damaged a little at random, always in the same way.
//
//     fuzz_session RUNS CORPUS        test the inputs in a folder, and that many damaged ones
//     fuzz_session --seeds DIRECTORY  write the sound inputs, to start a corpus from
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "fuzz.hpp"

namespace {

Input damaged(Input input, std::mt19937 &random) {
    const auto below = [&](size_t end) { return static_cast<size_t>(random() % std::max<size_t>(end, 1)); };
    for (size_t change = 1 + below(4); change > 0 && !input.empty(); --change) {
        const size_t at = below(input.size());
        switch (below(6)) {
            case 0: input[at] ^= static_cast<uint8_t>(1u << below(8)); break;
            case 1: input[at] = static_cast<uint8_t>(random()); break;
            case 2: input.resize(at); break;
            case 3: input.insert(input.begin() + static_cast<ptrdiff_t>(at), 1 + below(9), input[at]); break;
            case 4: {
                const uint32_t extremes[] = {0, 1, 255, 256, 0x7fffffff, 0x80000000, 0xffffffff};
                const uint32_t value = extremes[below(7)];
                std::memcpy(input.data() + at, &value, std::min(sizeof value, input.size() - at));
                break;
            }
            default: {
                const size_t from = below(input.size()),
                             count = below(std::min(input.size() - at, input.size() - from));
                std::memmove(input.data() + at, input.data() + from, count);
            }
        }
    }
    return input;
}

}  // namespace

int main(int count, char **arguments) {
    std::vector<Input> seeds = fuzz_seeds();
    if (count == 3 && std::strcmp(arguments[1], "--seeds") == 0) {
        for (size_t i = 0; i < seeds.size(); ++i) {
            std::ofstream file(std::string(arguments[2]) + "/seed" + std::to_string(i), std::ios::binary);
            file.write(reinterpret_cast<const char *>(seeds[i].data()), static_cast<std::streamsize>(seeds[i].size()));
        }
        return 0;
    }
    if (count != 3) {
        std::fprintf(stderr, "usage: %s RUNS CORPUS\n", arguments[0]);
        return 2;
    }
    const long runs = std::strtol(arguments[1], nullptr, 10);
    std::vector<std::filesystem::path> files;
    for (const auto &entry : std::filesystem::directory_iterator(arguments[2])) files.push_back(entry.path());
    std::sort(files.begin(), files.end());  // the same order everywhere
    for (const auto &path : files) {
        std::ifstream file(path, std::ios::binary);
        seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    std::mt19937 random(1);
    for (const Input &seed : seeds) LLVMFuzzerTestOneInput(seed.data(), seed.size());
    for (long run = 0; run < runs; ++run) {
        const Input input = damaged(seeds[static_cast<size_t>(run) % seeds.size()], random);
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("%zu inputs as they are, %ld damaged\n", seeds.size(), runs);
    return 0;
}
