#include "match_amx.hpp"

#include <immintrin.h>

#include "match_avx512.hpp"

namespace vosrt {
namespace {

// Registers 0-3 hold sums (key tile, query tile), 4-5 keys, 6-7 queries. The intrinsics take literal numbers only.
struct HardwareTiles {
    struct alignas(64) Shape {
        uint8_t palette, start_row, reserved[14];
        uint16_t column_bytes[16];
        uint8_t rows[16];
    };
    static_assert(sizeof(Shape) == 64);
    // GCC knows only of the first 8 of the bytes that the instruction reads, and leaves the rest of a local unwritten.
    static constexpr Shape kShape = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

    // Tile shapes are per thread and cost other code nothing once released.
    struct Configured {
        Configured() {
            _tile_loadconfig(&kShape);
            // Nor does it know that tiles are loaded from memory: what was written must be there.
            __asm__ volatile("" ::: "memory");
        }
        ~Configured() { _tile_release(); }
        Configured(const Configured &) = delete;
        Configured &operator=(const Configured &) = delete;
    };

    static void clear() {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    static void load_keys0(const uint16_t *at, ptrdiff_t row) { _tile_loadd(4, at, row); }
    static void load_keys1(const uint16_t *at, ptrdiff_t row) { _tile_loadd(5, at, row); }
    static void load_query0(const uint16_t *at, ptrdiff_t row) { _tile_loadd(6, at, row); }
    static void load_query1(const uint16_t *at, ptrdiff_t row) { _tile_loadd(7, at, row); }
    static void multiply00() { _tile_dpbf16ps(0, 4, 6); }
    static void multiply01() { _tile_dpbf16ps(1, 4, 7); }
    static void multiply10() { _tile_dpbf16ps(2, 5, 6); }
    static void multiply11() { _tile_dpbf16ps(3, 5, 7); }
    static void store00(float *at, ptrdiff_t row) { _tile_stored(0, at, row); }
    static void store01(float *at, ptrdiff_t row) { _tile_stored(1, at, row); }
    static void store10(float *at, ptrdiff_t row) { _tile_stored(2, at, row); }
    static void store11(float *at, ptrdiff_t row) { _tile_stored(3, at, row); }
};

}  // namespace

const MatchKernel kMatchAmx = make_kernel<AmxOps<HardwareTiles, Avx512Compare, Avx512Ops<Fp32Product>>>(VOSRT_ISA_AMX);

}  // namespace vosrt
