#include "sha256.hpp"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace vosrt {
namespace {

alignas(16) constexpr std::array<uint32_t, 64> kRound = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t big_endian(const uint8_t *at) {
    return uint32_t{at[0]} << 24 | uint32_t{at[1]} << 16 | uint32_t{at[2]} << 8 | uint32_t{at[3]};
}

void compress_portable(std::array<uint32_t, 8> &state, const uint8_t *block) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) w[i] = big_endian(block + 4 * i);
    for (int i = 16; i < 64; ++i) {
        const uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
        const uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int i = 0; i < 64; ++i) {
        const uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
        const uint32_t first = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
        const uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
        const uint32_t second = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + first;
        d = c;
        c = b;
        b = a;
        a = first + second;
    }
    const uint32_t round[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] += round[i];
}

#if defined(__x86_64__)

bool has_sha_instructions() {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    const bool sse41 = __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 19));
    return sse41 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 29));
}

// Four rounds at a time. The instructions take a, b, e, f in one register and c, d, g, h in the other, from the highest lane down.
__attribute__((target("sha,sse4.1"))) void compress_x86(std::array<uint32_t, 8> &state, const uint8_t *block) {
    const auto words = [](auto *at) { return reinterpret_cast<__m128i *>(const_cast<uint32_t *>(at)); };
    const __m128i to_big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(words(state.data())), 0xb1);
    const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(words(state.data() + 4)), 0x1b);
    const __m128i abef_before = _mm_alignr_epi8(badc, hgfe, 8), cdgh_before = _mm_blend_epi16(hgfe, badc, 0xf0);
    __m128i abef = abef_before, cdgh = cdgh_before, w[4];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        __m128i &now = w[i % 4];
        if (i < 4)
            now = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i *>(block) + i), to_big_endian);
        else
            now = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(now, w[(i + 1) % 4]), _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4)),
                                       w[(i + 3) % 4]);
        const __m128i added = _mm_add_epi32(now, _mm_load_si128(words(kRound.data() + 4 * i)));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, added);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(added, 0x0e));
    }
    const __m128i feba = _mm_shuffle_epi32(_mm_add_epi32(abef, abef_before), 0x1b);
    const __m128i dchg = _mm_shuffle_epi32(_mm_add_epi32(cdgh, cdgh_before), 0xb1);
    _mm_storeu_si128(words(state.data()), _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(words(state.data() + 4), _mm_alignr_epi8(dchg, feba, 8));
}

#endif

// VOSRT_ISA=generic takes the portable code here, too.
Sha256::Compress fastest() {
#if defined(__x86_64__)
    static const bool instructions = has_sha_instructions();
    const char *isa = std::getenv("VOSRT_ISA");
    if (instructions && (isa == nullptr || std::strcmp(isa, "generic") != 0)) return compress_x86;
#endif
    return compress_portable;
}

}  // namespace

Sha256::Sha256() : compress_(fastest()) {}

void Sha256::update(std::span<const uint8_t> data) {
    while (!data.empty()) {
        const size_t held = bytes_ % block_.size();
        if (held == 0 && data.size() >= block_.size()) {
            compress_(state_, data.data());
            data = data.subspan(block_.size());
            bytes_ += block_.size();
            continue;
        }
        const size_t taken = std::min(block_.size() - held, data.size());
        std::memcpy(block_.data() + held, data.data(), taken);
        data = data.subspan(taken);
        bytes_ += taken;
        if (bytes_ % block_.size() == 0) compress_(state_, block_.data());
    }
}

std::array<uint8_t, 32> Sha256::finish() {
    const uint64_t bits = bytes_ * 8;
    const uint8_t one = 0x80;
    update({&one, 1});
    const uint8_t zero = 0;
    while (bytes_ % block_.size() != 56) update({&zero, 1});
    uint8_t length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    update(length);
    std::array<uint8_t, 32> digest;
    for (int i = 0; i < 32; ++i) digest[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
    return digest;
}

std::string hex(const std::array<uint8_t, 32> &digest) {
    std::string text;
    for (const uint8_t byte : digest)
        for (const int digit : {byte >> 4, byte & 15}) text += "0123456789abcdef"[digit];
    return text;
}

}  // namespace vosrt
