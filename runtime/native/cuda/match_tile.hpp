// The match kernel: one block finds, for a patch of queries, the best candidates among the keys of one job.
//
// A block is 8 warps. Its queries stay in shared memory; keys stream through a ring of kStages pieces of 128 keys x 32
// channels, copied ahead asynchronously. Each warp multiplies 32 queries with its share of the 128 keys on the tensor
// cores (m16n8k16, bf16 products, fp32 sums) and offers what reaches a query's worst kept candidate to that query's list, which
// the four threads of a quad hold in registers: they also hold that query's scores. No score is ever written to memory.
//
// What is written is each warp's lists, unsorted: 4 kPerThread candidates per query. Warps that share queries write lists of their own;
// read_out (frame_kernels.hpp) merges lists of warps and jobs.
//
// `Thread` is thread.cuh's on a GPU and emulated/fibers.hpp's in tests. It provides thread(), block(), job(), shared(), sync(),
// any(), shuffle(), shuffle_xor(), copy_ahead(), commit(), wait_ahead(), load_matrices() and multiply().
#pragma once

#include "candidate.hpp"
#include "geometry.hpp"
#include "plan.hpp"

namespace vosrt::cuda {

constexpr int32_t kWarps = 8, kThreads = 32 * kWarps;
constexpr int32_t kTileKeys = 128;
constexpr int32_t kStages = 4;
constexpr int32_t kStageBytes = kTileKeys * kRowBytes;

// Tiles whose cells and biases are held, see load(). Where a tile has kStages - 1 pieces or more, its successor alone is under way: two
// fewer make room for 128 queries of 256 channels on GPUs with 99 KiB of shared memory (sm_86, 89, 120).
VOSRT_BOTH constexpr int32_t ring_tiles(int32_t channels) {
    return padded_channels(channels) / kChunk >= kStages - 1 ? 2 : kStages;
}

// kWarpsDown x 32 queries a block; the other warps share the keys.
template <int kWarpsDown>
struct Shape {
    static constexpr int32_t kQueries = 32 * kWarpsDown;
    static constexpr int32_t kWarpsAcross = kWarps / kWarpsDown;  // lists per query
    static constexpr int32_t kWarpKeys = kTileKeys / kWarpsAcross;
    static constexpr int32_t kColumns = kWarpKeys / 8;  // tiles of 8 keys
    using QueryPatch = Patch<(kWarpsDown == 4 ? 16 : 8), (kWarpsDown == 1 ? 4 : 8)>;

    // Shared memory: queries, stages, cells and biases of ring_tiles() tiles, rows of the halo.
    VOSRT_BOTH static size_t shared_bytes(int32_t channels, const Window &window, bool local, const Grid &grid) {
        const size_t queries = static_cast<size_t>(kQueries) * padded_channels(channels) * 2;
        const int32_t rows = local ? smaller(QueryPatch{0, 0}.most_rows(window), grid.height) + 1 : 0;
        const size_t rings = ring_tiles(channels) * kTileKeys * (sizeof(int32_t) + sizeof(float));
        return queries + kStages * kStageBytes + rings + rows * sizeof(int32_t);
    }
};

struct MatchParams {
    Grid grid;
    Window window;
    int32_t channels;  // padded
    int32_t context;
    const int64_t *now;  // number of the newest frame
    const Job *jobs;
    const ReferenceEntry *references;
    const uint16_t *ring_keys;  // [context + 1][cells][channels] bf16; frame t in slot t mod (context + 1)
    const float *ring_bias;     // [context + 1][cells]
    Packed *lists;              // [jobs][warps across][cells][4 kPerThread]
};

template <class Thread, int kWarpsDown, int kPerThread>
class MatchTile {
    using Sizes = Shape<kWarpsDown>;
    using QueryPatch = typename Sizes::QueryPatch;

   public:
    VOSRT_KERNEL MatchTile(Thread &thread, const MatchParams &params)
        : t_(thread),
          p_(params),
          job_(params.jobs[thread.job()]),
          patch_(QueryPatch::at(params.grid, thread.block())),
          chunks_(params.channels / kChunk),
          ring_(ring_tiles(params.channels)),
          lane_(thread.thread() % 32),
          warp_down_(thread.thread() / 32 / Sizes::kWarpsAcross),
          warp_across_(thread.thread() / 32 % Sizes::kWarpsAcross) {
        queries_ = t_.shared();
        stages_ = queries_ + static_cast<size_t>(Sizes::kQueries) * params.channels * 2;
        cells_ = reinterpret_cast<int32_t *>(stages_ + kStages * kStageBytes);
        biases_ = reinterpret_cast<float *>(cells_ + ring_ * kTileKeys);
        starts_ = reinterpret_cast<int32_t *>(biases_ + ring_ * kTileKeys);
    }

    VOSRT_KERNEL void run() {
        if (job_.kind == kUnused) return;
        prepare();
        for (int32_t ahead = 0; ahead < kStages - 1; ++ahead) {
            if (ahead == 0) load_queries();
            load();
            t_.commit();
        }
        for (int32_t tile = 0; tile < tiles(); ++tile) {
            float sums[2][Sizes::kColumns][4] = {};
            for (int32_t chunk = 0; chunk < chunks_; ++chunk) {
                t_.template wait_ahead<kStages - 2>();
                t_.sync();  // this piece is there for everyone, and everyone is done with the one before
                load();
                t_.commit();
                multiply(sums, chunk, (tile * chunks_ + chunk) % kStages);
            }
            scan(sums, tile);
        }
        t_.template wait_ahead<0>();  // a job without keys has its queries under way, and a block must not end before they land
        write();
    }

   private:
    VOSRT_KERNEL int32_t tiles() const { return slots_ * tiles_per_slot_; }

    VOSRT_KERNEL void prepare() {
        if (job_.kind == kRecent && t_.thread() == 0) patch_.count_keys(p_.grid, p_.window, starts_);
        t_.sync();
        if (job_.kind == kReference) {
            slots_ = 1;
            keys_per_slot_ = job_.to - job_.from;
        } else {
            slots_ = job_.to - job_.from;
            keys_per_slot_ = starts_[patch_.bottom(p_.grid, p_.window) - patch_.top(p_.window)];
        }
        tiles_per_slot_ = ceil_divide(keys_per_slot_, kTileKeys);
        for (int32_t row = 0; row < 4; ++row) {
            lists_[row].clear(lane_ % 4);
            least_[row] = 0;
            thresholds_[row] = query_cell(row) < 0 ? INFINITY : -INFINITY;
        }
        load_tile_ = load_chunk_ = 0;
    }

    // Thread's rows of the block's queries: two of each half of its warp's 32.
    VOSRT_KERNEL int32_t query_row(int32_t row) const { return 32 * warp_down_ + 16 * (row / 2) + 8 * (row % 2) + lane_ / 4; }
    VOSRT_KERNEL int32_t query_cell(int32_t row) const { return patch_.cell(p_.grid, query_row(row)); }

    VOSRT_KERNEL void load_queries() {
        const int32_t cells = p_.grid.cells();
        const uint16_t *newest = p_.ring_keys + static_cast<size_t>(ring_slot(*p_.now, p_.context)) * cells * p_.channels;
        const int32_t pieces = Sizes::kQueries * chunks_ * kPieces;
        for (int32_t i = t_.thread(); i < pieces; i += kThreads) {
            const int32_t piece = i % kPieces, chunk = i / kPieces % chunks_, row = i / kPieces / chunks_;
            const int32_t cell = patch_.cell(p_.grid, row);
            t_.copy_ahead(queries_ + static_cast<size_t>(chunk) * Sizes::kQueries * kRowBytes + tile_offset(row, piece),
                          newest + static_cast<size_t>(larger(cell, 0)) * p_.channels + chunk * kChunk + 8 * piece, cell >= 0);
        }
    }

    // Copy the next piece of keys. Each thread serves the same two keys of every tile; at a tile's first piece it looks up
    // where they are. A piece is loaded kStages - 1 ahead of its use, hence a tile at most as many ahead, and at most one ahead if it has as
    // many pieces: a ring of ring_tiles() is never overwritten while it is read.
    VOSRT_KERNEL void load() {
        if (load_tile_ >= tiles()) return;
        const int32_t piece = t_.thread() % kPieces, first = t_.thread() / kPieces;
        if (load_chunk_ == 0) enter_tile(piece == 0, first);
        std::byte *stage = stages_ + (load_tile_ * chunks_ + load_chunk_) % kStages * kStageBytes;
        for (int32_t i = 0; i < 2; ++i) {
            const int32_t row = first + i * (kTileKeys / 2);
            t_.copy_ahead(stage + tile_offset(row, piece),
                          load_keys_ + static_cast<size_t>(larger(load_cells_[i], 0)) * p_.channels + load_chunk_ * kChunk + 8 * piece,
                          load_cells_[i] >= 0);
        }
        if (++load_chunk_ == chunks_) {
            load_chunk_ = 0;
            ++load_tile_;
        }
    }

    VOSRT_KERNEL void enter_tile(bool publish, int32_t first) {
        const int32_t cells = p_.grid.cells(), slot = load_tile_ / tiles_per_slot_;
        const float *bias;
        if (job_.kind == kRecent) {
            const auto at = static_cast<size_t>(ring_slot(*p_.now - (job_.from + slot), p_.context)) * cells;
            load_keys_ = p_.ring_keys + at * p_.channels;
            bias = p_.ring_bias + at;
        } else {
            load_keys_ = p_.references[job_.reference].keys;
            bias = p_.references[job_.reference].bias;
        }
        for (int32_t i = 0; i < 2; ++i) {
            const int32_t row = first + i * (kTileKeys / 2);
            const int32_t n = load_tile_ % tiles_per_slot_ * kTileKeys + row;
            int32_t cell = -1;
            if (n < keys_per_slot_)
                cell = job_.kind == kReference ? job_.from + n : patch_.key_cell(p_.grid, p_.window, starts_, n);
            load_cells_[i] = cell;
            if (publish) {
                const int32_t at = load_tile_ % ring_ * kTileKeys + row;
                cells_[at] = cell;
                biases_[at] = cell < 0 ? -INFINITY : bias[cell];
            }
        }
    }

    VOSRT_KERNEL void multiply(float (&sums)[2][Sizes::kColumns][4], int32_t chunk, int32_t stage) {
        const std::byte *queries = queries_ + static_cast<size_t>(chunk) * Sizes::kQueries * kRowBytes;
        const std::byte *keys = stages_ + stage * kStageBytes;
#if defined(__CUDACC__)
#pragma unroll
#endif
        for (int32_t step = 0; step < kChunk / 16; ++step) {
            uint32_t a[2][4];
            for (int32_t half = 0; half < 2; ++half)
                t_.load_matrices(a[half], queries + tile_offset(32 * warp_down_ + 16 * half + lane_ % 16, 2 * step + lane_ / 16));
#if defined(__CUDACC__)
#pragma unroll
#endif
            for (int32_t pair = 0; pair < Sizes::kColumns / 2; ++pair) {
                uint32_t b[4];
                const int32_t row = Sizes::kWarpKeys * warp_across_ + 16 * pair + lane_ % 8 + lane_ / 16 * 8;
                t_.load_matrices(b, keys + tile_offset(row, 2 * step + lane_ / 8 % 2));
                for (int32_t half = 0; half < 2; ++half) {
                    t_.multiply(sums[half][2 * pair], a[half], b[0], b[1]);
                    t_.multiply(sums[half][2 * pair + 1], a[half], b[2], b[3]);
                }
            }
        }
    }

    // Offer what reaches the thresholds. A thread has, of each of its four queries, the scores of two neighbouring keys in every
    // column of tiles.
    VOSRT_KERNEL void scan(float (&sums)[2][Sizes::kColumns][4], int32_t tile) {
        const int32_t ring = tile % ring_ * kTileKeys + Sizes::kWarpKeys * warp_across_ + 2 * (lane_ % 4);
        const int32_t *cells = cells_ + ring;
        const float *biases = biases_ + ring;
        const int32_t position =
            job_.kind == kRecent ? position_of_age(job_.from + tile / tiles_per_slot_, p_.context) : 0;
#if defined(__CUDACC__)
#pragma unroll
#endif
        for (int32_t row = 0; row < 4; ++row) {
            uint32_t hits = 0;
#if defined(__CUDACC__)
#pragma unroll
#endif
            for (int32_t n = 0; n < 2 * Sizes::kColumns; ++n) {
                float &score = sums[row / 2][n / 2][row % 2 * 2 + n % 2];
                score += biases[n / 2 * 8 + n % 2];
                if (score >= thresholds_[row]) hits |= 1u << n;
            }
            while (t_.any(hits != 0)) {
                Packed mine = 0;
                while (hits != 0 && mine == 0) {  // what the window or a threshold that rose meanwhile rules out costs the quad no turns
                    const int32_t at = lowest_bit(hits);
                    hits &= hits - 1;
                    float score = 0.0f;
#if defined(__CUDACC__)
#pragma unroll
#endif
                    for (int32_t n = 0; n < 2 * Sizes::kColumns; ++n)
                        if (n == at) score = sums[row / 2][n / 2][row % 2 * 2 + n % 2];
                    if (!(score >= thresholds_[row])) continue;
                    const int32_t cell = cells[at / 2 * 8 + at % 2];
                    if (attends(row, cell)) mine = pack(score, position, cell, p_.grid.cells());
                }
                offer(row, mine);
            }
        }
    }

    VOSRT_KERNEL bool attends(int32_t row, int32_t cell) const {
        if (cell < 0 || query_cell(row) < 0) return false;
        if (job_.kind == kReference) return true;
        const int32_t query = query_row(row), width = p_.grid.width;
        return p_.window.holds(cell / width - patch_.query_y(query), cell % width - patch_.query_x(query));
    }

    // Take in one candidate (0 = none) of each thread of the quad, one after the other.
    VOSRT_KERNEL void offer(int32_t row, Packed mine) {
        Share<kPerThread> &list = lists_[row];
        for (int32_t turn = 0; turn < 4; ++turn) {
            const Packed candidate = t_.shuffle(mine, lane_ / 4 * 4 + turn);
            if (!t_.any(candidate > least_[row])) continue;
            if (candidate > least_[row]) list.replace(least_[row], candidate);
            Packed least = list.least();
            for (int32_t step = 1; step < 4; step *= 2) {
                const Packed other = t_.shuffle_xor(least, step);
                least = other < least ? other : least;
            }
            least_[row] = least;
        }
        if (query_cell(row) >= 0) thresholds_[row] = threshold_of(least_[row]);
    }

    VOSRT_KERNEL void write() {
        constexpr int32_t kLength = 4 * kPerThread;
        const int32_t cells = p_.grid.cells();
        Packed *lists = p_.lists + (static_cast<size_t>(t_.job()) * Sizes::kWarpsAcross + warp_across_) * cells * kLength;
        for (int32_t row = 0; row < 4; ++row) {
            const int32_t cell = query_cell(row);
            if (cell < 0) continue;
            for (int32_t n = 0; n < kPerThread; ++n)
                lists[static_cast<size_t>(cell) * kLength + 4 * n + lane_ % 4] = lists_[row].values[n];
        }
    }

    Thread &t_;
    const MatchParams &p_;
    const Job job_;
    const QueryPatch patch_;
    const int32_t chunks_, ring_, lane_, warp_down_, warp_across_;
    std::byte *queries_, *stages_;
    int32_t *cells_;
    float *biases_;
    int32_t *starts_;
    int32_t slots_, keys_per_slot_, tiles_per_slot_;

    int32_t load_tile_, load_chunk_;
    int32_t load_cells_[2];
    const uint16_t *load_keys_;

    Share<kPerThread> lists_[4];
    Packed least_[4];
    float thresholds_[4];
};

}  // namespace vosrt::cuda
