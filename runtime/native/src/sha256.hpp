// SHA-256 (FIPS 180-4), for files of a bundle and for sessions.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace vosrt {

class Sha256 {
   public:
    using Compress = void (*)(std::array<uint32_t, 8> &state, const uint8_t *block);

    Sha256();
    void update(std::span<const uint8_t> data);
    std::array<uint8_t, 32> finish();

   private:
    Compress compress_;
    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> block_{};
    uint64_t bytes_ = 0;
};

// 64 lower-case hexadecimal digits.
std::string hex(const std::array<uint8_t, 32> &digest);

}  // namespace vosrt
