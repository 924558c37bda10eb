// Runs a fuzz target without libFuzzer: sound inputs, damaged a little at random, always in the same way.
//
//     fuzz_session RUNS               test that many inputs
//     fuzz_session --seeds DIRECTORY  write the sound inputs, as a corpus for libFuzzer
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
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
                const size_t from = below(input.size()), count = below(std::min(input.size() - at, input.size() - from));
                std::memmove(input.data() + at, input.data() + from, count);
            }
        }
    }
    return input;
}

}  // namespace

int main(int count, char **arguments) {
    const std::vector<Input> seeds = fuzz_seeds();
    if (count == 3 && std::strcmp(arguments[1], "--seeds") == 0) {
        for (size_t i = 0; i < seeds.size(); ++i) {
            std::ofstream file(std::string(arguments[2]) + "/seed" + std::to_string(i), std::ios::binary);
            file.write(reinterpret_cast<const char *>(seeds[i].data()), static_cast<std::streamsize>(seeds[i].size()));
        }
        return 0;
    }
    const long runs = count == 2 ? std::strtol(arguments[1], nullptr, 10) : 1000;
    std::mt19937 random(1);
    for (const Input &seed : seeds) LLVMFuzzerTestOneInput(seed.data(), seed.size());
    for (long run = 0; run < runs; ++run) {
        const Input input = damaged(seeds[run % seeds.size()], random);
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("%ld inputs\n", runs);
    return 0;
}
