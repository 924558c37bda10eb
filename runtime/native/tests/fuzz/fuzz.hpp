// A fuzz target: one function for libFuzzer, and sound inputs to start from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

using Input = std::vector<uint8_t>;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
std::vector<Input> fuzz_seeds();
