// The AMX path on any processor: tile registers and their three instructions in plain C++, as Intel's manual defines
// them (TILELOADD, TDPBF16PS, TILESTORED; full tiles of 16 rows x 64 bytes). It exists so that the path is tested everywhere.
#include "match_amx.hpp"
#include "match_generic.hpp"

namespace vosrt {
namespace {

struct EmulatedTiles {
    struct Configured {};
    using Operand = uint16_t[16][32];
    using Sums = float[16][16];

    Sums sums[2][2];
    Operand keys[2], queries[2];

    void clear() { std::memset(sums, 0, sizeof sums); }
    void load_keys0(const uint16_t *at, ptrdiff_t row) { load(keys[0], at, row); }
    void load_keys1(const uint16_t *at, ptrdiff_t row) { load(keys[1], at, row); }
    void load_query0(const uint16_t *at, ptrdiff_t row) { load(queries[0], at, row); }
    void load_query1(const uint16_t *at, ptrdiff_t row) { load(queries[1], at, row); }
    void multiply00() { multiply(0, 0); }
    void multiply01() { multiply(0, 1); }
    void multiply10() { multiply(1, 0); }
    void multiply11() { multiply(1, 1); }
    void store00(float *at, ptrdiff_t row) const { store(sums[0][0], at, row); }
    void store01(float *at, ptrdiff_t row) const { store(sums[0][1], at, row); }
    void store10(float *at, ptrdiff_t row) const { store(sums[1][0], at, row); }
    void store11(float *at, ptrdiff_t row) const { store(sums[1][1], at, row); }

    static void load(Operand &tile, const uint16_t *at, ptrdiff_t row) {
        const auto *bytes = reinterpret_cast<const std::byte *>(at);
        for (int32_t m = 0; m < 16; ++m) std::memcpy(tile[m], bytes + m * row, sizeof tile[m]);
    }
    static void store(const Sums &tile, float *at, ptrdiff_t row) {
        auto *bytes = reinterpret_cast<std::byte *>(at);
        for (int32_t m = 0; m < 16; ++m) std::memcpy(bytes + m * row, tile[m], sizeof tile[m]);
    }
    void multiply(int32_t key_tile, int32_t query_tile) {
        for (int32_t m = 0; m < 16; ++m)
            for (int32_t pair = 0; pair < 16; ++pair)
                for (int32_t n = 0; n < 16; ++n)
                    for (int32_t half = 0; half < 2; ++half)
                        sums[key_tile][query_tile][m][n] += from_bf16(keys[key_tile][m][2 * pair + half]) *
                                                            from_bf16(queries[query_tile][pair][2 * n + half]);
    }
};

struct PlainCompare {
    static uint32_t at_least(const float *scores, const float *thresholds) {
        uint32_t lanes = 0;
        for (int32_t lane = 0; lane < 32; ++lane)
            lanes |= static_cast<uint32_t>(scores[lane] >= thresholds[lane]) << lane;
        return lanes;
    }
    static uint32_t not_less(const float *bounds, float bias, const float *limits) {
        uint32_t lanes = 0;
        for (int32_t lane = 0; lane < 32; ++lane) lanes |= static_cast<uint32_t>(!(bounds[lane] + bias < limits[lane])) << lane;
        return lanes;
    }
};

}  // namespace

const MatchKernel kMatchAmxEmulated = make_kernel<AmxOps<EmulatedTiles, PlainCompare, GenericOps>>(VOSRT_ISA_AMX_EMULATED);

}  // namespace vosrt
