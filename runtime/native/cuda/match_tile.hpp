// The match kernel: one block finds, for a patch of queries, the best candidates among the keys of one job.
//
// A block is 8 warps. Its queries stay in shared memory; keys stream through a ring of kStages pieces of 128 keys x 32
// channels, copied ahead asynchronously. Each warp multiplies 32 queries with its share of the 128 keys on the tensor
// cores (m16n8k16, bf16 products, fp32 sums) and offers what reaches a query's worst kept candidate to that query's list, which
// the four threads of a quad hold in registers: they also hold that query's scores. No score is ever written to memory.
//
// Bounded, it streams the keys' heads in their place (src/cpu/match_bound.hpp), whose products bound similarities from above. Keys whose
// bound reaches some query's threshold survive: each warp queues its own, and multiplies 16 at a time in full, in the order of the
// unbounded search, so that both give the same bits. Thresholds begin at what seed_limits (frame_kernels.hpp) knows.
//
// What is written is each warp's lists, unsorted: top_k candidates per query, at most 4 kPerThread. Warps that share queries write lists of their own;
// read_out (frame_kernels.hpp) merges lists of warps and jobs.
//
// `Thread` is thread.cuh's on a GPU and emulated/fibers.hpp's in tests. It provides thread(), block(), job(), shared(), sync(),
// any(), shuffle(), shuffle_xor(), combine(), copy_ahead(), commit(), wait_ahead() and multiply().
#pragma once

#include "../src/bound.hpp"
#include "candidate.hpp"
#include "geometry.hpp"
#include "plan.hpp"

namespace vosrt::cuda {

constexpr int32_t kWarps = 8, kThreads = 32 * kWarps;
constexpr int32_t kTileKeys = 128;
constexpr int32_t kStages = 4, kHeadStages = 2;  // heads need less time to arrive than survivors to be multiplied
constexpr int32_t kStageBytes = kTileKeys * kRowBytes;

// Tiles whose sites and biases are held, see load(). Where a tile has kStages - 1 pieces or more, its successor alone is under way: two
// fewer make room for 128 queries of 256 channels on GPUs with 99 KiB of shared memory (sm_86, 89, 120).
VOSRT_BOTH constexpr int32_t ring_tiles(int32_t channels) {
    return padded_channels(channels) / kChunk >= kStages - 1 ? 2 : kStages;
}

// A key that some query of a warp may need.
struct Survivor {
    int32_t row;     // in the ring, or among the reference's cells
    uint32_t place;  // see candidate.hpp
    Site site;
};
constexpr int32_t kAtOnce = 16;  // survivors

// kWarpsDown x 32 queries a block; the other warps share the keys.
template <int kWarpsDown>
struct Shape {
    static constexpr int32_t kQueries = 32 * kWarpsDown;
    static constexpr int32_t kWarpsAcross = kWarps / kWarpsDown;  // lists per query
    static constexpr int32_t kWarpKeys = kTileKeys / kWarpsAcross;
    static constexpr int32_t kColumns = kWarpKeys / 8;  // tiles of 8 keys
    using QueryPatch = Patch<(kWarpsDown == 4 ? 16 : 8), (kWarpsDown == 1 ? 4 : 8)>;

    // Shared memory: queries, stages, sites and biases of ring_tiles() tiles, rows of the halo.
    VOSRT_BOTH static size_t shared_bytes(int32_t channels, const Window &window, bool local, const Grid &grid) {
        const size_t queries = static_cast<size_t>(kQueries) * padded_channels(channels) * 2;
        const int32_t rows = local ? smaller(QueryPatch{0, 0}.most_rows(window), grid.height) + 1 : 0;
        const size_t rings = ring_tiles(channels) * kTileKeys * (sizeof(Site) + sizeof(float));
        return queries + kStages * kStageBytes + rings + rows * sizeof(int32_t);
    }
    // Bounded: heads of queries and each warp's queue of survivors besides, shorter rings.
    static constexpr int32_t kQueue = kAtOnce - 1 + kWarpKeys;
    VOSRT_BOTH static size_t bounded_bytes(int32_t channels, const Window &window, const Grid &grid, int32_t head) {
        const size_t stages = (kStages - kHeadStages) * kStageBytes;
        const size_t rings = (ring_tiles(channels) - kHeadStages) * kTileKeys * (sizeof(Site) + sizeof(float));
        return shared_bytes(channels, window, true, grid) - stages - rings + kQueries * head * sizeof(uint16_t) +
               kWarps * kQueue * sizeof(Survivor);
    }
};

struct MatchParams {
    Grid grid;
    Window window;
    int32_t channels;  // padded
    int32_t context, top_k;
    const int64_t *now;  // number of the newest frame
    const Job *jobs;
    const ReferenceEntry *references;
    const uint16_t *ring_keys;  // [context + 1][cells][channels] bf16; frame t in slot t mod (context + 1)
    const float *ring_bias;     // [context + 1][cells]
    Packed *lists;              // [jobs][warps across][cells][top_k]
    // Of a bounded search; `limits` may be nullptr.
    int32_t head;                // channels of a head, a multiple of kChunk
    const uint16_t *ring_heads;  // [context + 1][cells][head] bf16
    const Context *contexts;
    int32_t reference_count;
    const float *limits;  // [references][cells], what a query's k-th best reaches at least
    SearchState *search;
};

template <class Thread, int kWarpsDown, int kPerThread, bool kBounded>
class MatchTile {
    using Sizes = Shape<kWarpsDown>;
    using QueryPatch = typename Sizes::QueryPatch;
    static constexpr int32_t kRing = kBounded ? kHeadStages : kStages;  // stages

   public:
    VOSRT_KERNEL MatchTile(Thread &thread, const MatchParams &params)
        : t_(thread),
          p_(params),
          job_(params.jobs[thread.job()]),
          patch_(QueryPatch::at(params.grid, thread.block())),
          chunks_((kBounded ? params.head : params.channels) / kChunk),
          ring_(kBounded ? kHeadStages : ring_tiles(params.channels)),
          newest_(ring_slot(*params.now, params.context)),
          lane_(thread.thread() % 32),
          warp_down_(thread.thread() / 32 / Sizes::kWarpsAcross),
          warp_across_(thread.thread() / 32 % Sizes::kWarpsAcross) {
        queries_ = t_.shared();
        heads_ = queries_ + static_cast<size_t>(Sizes::kQueries) * params.channels * 2;
        stages_ = heads_ + (kBounded ? static_cast<size_t>(Sizes::kQueries) * params.head * 2 : 0);
        sites_ = reinterpret_cast<Site *>(stages_ + kRing * kStageBytes);
        biases_ = reinterpret_cast<float *>(sites_ + ring_ * kTileKeys);
        auto *queues = reinterpret_cast<Survivor *>(biases_ + ring_ * kTileKeys);
        queue_ = queues + t_.thread() / 32 * Sizes::kQueue;
        starts_ = reinterpret_cast<int32_t *>(queues + (kBounded ? kWarps * Sizes::kQueue : 0));
    }

    VOSRT_KERNEL void run() {
        if (job_.kind == kUnused || (job_.bounded != 0) != kBounded) return;
        prepare();
        for (int32_t ahead = 0; ahead < kRing - 1; ++ahead) {
            load();
            t_.commit();
        }
        load_queries(queries_, p_.ring_keys, p_.channels);
        if (kBounded) load_queries(heads_, p_.ring_heads, p_.head);
        int32_t age = job_.from, of_slot = 0;
        for (int32_t tile = 0; tile < tiles(); ++tile) {
            float sums[2][Sizes::kColumns][4] = {};
            for (int32_t chunk = 0; chunk < chunks_; ++chunk) {
                t_.template wait_ahead<kRing - 2>();
                t_.sync();  // this piece is there for everyone, and everyone is done with the one before
                load();
                t_.commit();
                multiply(sums, chunk, (tile * chunks_ + chunk) % kRing);
            }
            if constexpr (kBounded) {
                screen(sums, tile, age);
                for (const int32_t least = tile + 1 < tiles() ? kAtOnce : 1; queued_ >= least;) multiply_queued();
            } else {
                scan(sums, tile, age);
            }
            if (++of_slot == tiles_per_slot_) of_slot = 0, ++age;
        }
        if (kBounded && lane_ == 0) {
            t_.add(&p_.search->screened, static_cast<uint64_t>(tiles()) * Sizes::kWarpKeys);
            t_.add(&p_.search->products, static_cast<uint64_t>(products_));
        }
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
        VOSRT_UNROLL
        for (int32_t row = 0; row < 4; ++row) {
            lists_[row].clear(lane_ % 4, p_.top_k);
            least_[row] = 0;
            floors_[row] = thresholds_[row] = limit(query_cell(row));
        }
        load_tile_ = load_chunk_ = load_of_slot_ = 0;
        load_age_ = job_.from;
    }

    // What a candidate of this job has to reach. Recent frames serve the contexts of several references.
    VOSRT_KERNEL float limit(int32_t cell) const {
        if (cell < 0) return INFINITY;
        if (p_.limits == nullptr) return -INFINITY;
        if (job_.kind == kReference) return p_.limits[static_cast<size_t>(job_.reference) * p_.grid.cells() + cell];
        float least = INFINITY;
        for (int32_t r = 0; r < p_.reference_count; ++r) {
            const float of_reference = p_.limits[static_cast<size_t>(r) * p_.grid.cells() + cell];
            if (job_serves(job_, r, p_.contexts[r]) && of_reference < least) least = of_reference;
        }
        return least;
    }

    // Thread's rows of the block's queries: two of each half of its warp's 32.
    VOSRT_KERNEL int32_t query_row(int32_t row) const { return 32 * warp_down_ + 16 * (row / 2) + 8 * (row % 2) + lane_ / 4; }
    VOSRT_KERNEL int32_t query_cell(int32_t row) const { return patch_.cell(p_.grid, query_row(row)); }

    // Keys of the patch, or their heads, as pieces of kChunk channels.
    VOSRT_KERNEL void load_queries(std::byte *to, const uint16_t *ring, int32_t channels) {
        const uint16_t *newest = ring + static_cast<size_t>(newest_) * p_.grid.cells() * channels;
        for (int32_t i = t_.thread(); i < Sizes::kQueries * channels / 8; i += kThreads) {
            const int32_t piece = i % kPieces, row = i / kPieces % Sizes::kQueries, chunk = i / kPieces / Sizes::kQueries;
            const int32_t cell = patch_.cell(p_.grid, row);
            Eight eight{};
            if (cell >= 0) eight = load_global_eight(newest + static_cast<size_t>(cell) * channels + chunk * kChunk + 8 * piece);
            for (int32_t pair = 0; pair < 4; ++pair)
                *reinterpret_cast<uint32_t *>(to + chunk * Sizes::kQueries * kRowBytes + fragment_offset(row, piece, pair)) = eight.pairs[pair];
        }
    }

    // Copy the next piece of keys. Each thread serves the same two keys of every tile; at a tile's first piece it looks up
    // where they are. A piece is loaded kRing - 1 ahead of its use, hence a tile at most as many ahead, and at most one ahead if it has as
    // many pieces: a ring of ring_tiles() is never overwritten while it is read.
    VOSRT_KERNEL void load() {
        if (load_tile_ >= tiles()) return;
        const int32_t piece = t_.thread() % kPieces, first = t_.thread() / kPieces;
        if (load_chunk_ == 0) enter_tile(piece == 0, first);
        std::byte *stage = stages_ + (load_tile_ * chunks_ + load_chunk_) % kRing * kStageBytes;
        for (int32_t i = 0; i < 2; ++i) {
            const int32_t row = first + i * (kTileKeys / 2);
            t_.copy_ahead(stage + tile_offset(row, piece),
                          load_keys_ + static_cast<size_t>(larger(load_cells_[i], 0)) * chunks_ * kChunk + load_chunk_ * kChunk + 8 * piece,
                          load_cells_[i] >= 0);
        }
        if (++load_chunk_ == chunks_) {
            load_chunk_ = 0;
            ++load_tile_;
            if (++load_of_slot_ == tiles_per_slot_) load_of_slot_ = 0, ++load_age_;
        }
    }

    VOSRT_KERNEL void enter_tile(bool publish, int32_t first) {
        const float *bias;
        if (job_.kind == kRecent) {
            const auto at = static_cast<size_t>(slot_of_age(newest_, load_age_, p_.context)) * p_.grid.cells();
            load_keys_ = (kBounded ? p_.ring_heads : p_.ring_keys) + at * chunks_ * kChunk;
            bias = p_.ring_bias + at;
        } else {
            load_keys_ = kBounded ? p_.references[job_.reference].heads : p_.references[job_.reference].keys;
            bias = p_.references[job_.reference].bias;
        }
        for (int32_t i = 0; i < 2; ++i) {
            const int32_t row = first + i * (kTileKeys / 2);
            const int32_t n = load_of_slot_ * kTileKeys + row;
            int32_t cell = -1;
            Site site = -1;
            if (n < keys_per_slot_ && job_.kind == kReference) {
                cell = job_.from + n;
                if (publish) site = site_of(cell, p_.grid);
            } else if (n < keys_per_slot_) {
                site = patch_.key(p_.grid, p_.window, starts_, n);
                cell = cell_of(site, p_.grid);
            }
            load_cells_[i] = cell;
            if (publish) {
                const int32_t at = load_tile_ % ring_ * kTileKeys + row;
                sites_[at] = site;
                biases_[at] = cell < 0 ? -INFINITY : kBounded ? bias[cell] + bound::slack(p_.channels) * fabsf(bias[cell])
                                                              : bias[cell];
            }
        }
    }

    // Of 8 keys a thread takes the eight channels of its place in the quad, four for each of a chunk's two steps. Which channels meet in
    // one instruction does not matter as long as queries and keys have the same ones there, in both searches.
    VOSRT_KERNEL Eight load_right(const std::byte *keys, int32_t row) const {
        return load_eight(keys + tile_offset(row + lane_ / 4, lane_ % 4));
    }
    struct Left {
        Eight half[2][2];  // of the warp's 32 queries, by step
    };
    VOSRT_KERNEL Left load_left(const std::byte *queries) const {
        Left left;
        for (int32_t n = 0; n < 4; ++n)
            left.half[n / 2][n % 2] = load_eight(queries + 32 * warp_down_ * kRowBytes + n * 512 + 16 * lane_);
        return left;
    }
    // A chunk of all 32 queries with 16 keys.
    template <int kColumns>
    VOSRT_KERNEL void multiply_pair(float (&sums)[2][kColumns][4], int32_t column, const Left &left, const Eight (&right)[2]) {
        VOSRT_UNROLL
        for (int32_t step = 0; step < 2; ++step)
            for (int32_t n = 0; n < 4; ++n)
                t_.multiply(sums[n % 2][column + n / 2], left.half[n % 2][step].pairs, right[n / 2].pairs[2 * step],
                            right[n / 2].pairs[2 * step + 1]);
    }

    VOSRT_KERNEL void multiply(float (&sums)[2][Sizes::kColumns][4], int32_t chunk, int32_t stage) {
        const std::byte *queries = (kBounded ? heads_ : queries_) + static_cast<size_t>(chunk) * Sizes::kQueries * kRowBytes;
        const std::byte *keys = stages_ + stage * kStageBytes;
        const Left left = load_left(queries);
        VOSRT_UNROLL
        for (int32_t column = 0; column < Sizes::kColumns; column += 2) {
            const int32_t row = Sizes::kWarpKeys * warp_across_ + 8 * column;
            multiply_pair(sums, column, left, {load_right(keys, row), load_right(keys, row + 8)});
        }
    }

    // Offer what reaches the thresholds. A thread has, of each of its four queries, the scores of two neighbouring keys in every
    // column of tiles.
    VOSRT_KERNEL void scan(float (&sums)[2][Sizes::kColumns][4], int32_t tile, int32_t age) {
        const int32_t ring = tile % ring_ * kTileKeys + Sizes::kWarpKeys * warp_across_ + 2 * (lane_ % 4);
        const Site *sites = sites_ + ring;
        const float *biases = biases_ + ring;
        offer_scores(
            sums, [&](int32_t n) { return biases[n / 2 * 8 + n % 2]; },
            [&](int32_t n) {
                const Site site = sites[n / 2 * 8 + n % 2];
                return Key{site, place_of(position(age), cell_of(site, p_.grid), p_.grid.cells())};
            });
    }
    // Slot of the context that keys are of: the frame of an age, or the job's reference.
    VOSRT_KERNEL int32_t position(int32_t age) const { return job_.kind == kRecent ? position_of_age(age, p_.context) : 0; }

    struct Key {
        Site site;
        uint32_t place;
    };
    // `bias_of` and `key_of` say of a thread's n-th key of 2 kColumns what is added to its product, and which one it is.
    template <int kColumns, class BiasOf, class KeyOf>
    VOSRT_KERNEL void offer_scores(float (&sums)[2][kColumns][4], const BiasOf &bias_of, const KeyOf &key_of) {
        VOSRT_UNROLL
        for (int32_t row = 0; row < 4; ++row) {
            uint32_t hits = 0;
            VOSRT_UNROLL
            for (int32_t n = 0; n < 2 * kColumns; ++n) {
                float &score = sums[row / 2][n / 2][row % 2 * 2 + n % 2];
                score += bias_of(n);
                if (score >= thresholds_[row]) hits |= 1u << n;
            }
            while (t_.any(hits != 0)) {
                Packed mine = 0;
                while (hits != 0 && mine == 0) {  // what the window or a threshold that rose meanwhile rules out costs the quad no turns
                    const int32_t at = lowest_bit(hits);
                    hits &= hits - 1;
                    float score = 0.0f;
                    VOSRT_UNROLL
                    for (int32_t n = 0; n < 2 * kColumns; ++n)
                        if (n == at) score = sums[row / 2][n / 2][row % 2 * 2 + n % 2];
                    if (!(score >= thresholds_[row])) continue;
                    const Key key = key_of(at);
                    if (attends(row, key.site)) mine = pack(score, key.place);
                }
                offer(row, mine);
            }
        }
    }

    // Queue the keys of a tile whose bound reaches the threshold of a query that attends to them; what is NaN does.
    VOSRT_KERNEL void screen(const float (&sums)[2][Sizes::kColumns][4], int32_t tile, int32_t age) {
        const int32_t ring = tile % ring_ * kTileKeys + Sizes::kWarpKeys * warp_across_;
        const Site *sites = sites_ + ring;
        const float *biases = biases_ + ring + 2 * (lane_ % 4);
        uint64_t mine = 0;
        VOSRT_UNROLL
        for (int32_t row = 0; row < 4; ++row) {
            uint32_t hits = 0;
            VOSRT_UNROLL
            for (int32_t n = 0; n < 2 * Sizes::kColumns; ++n)
                if (!(sums[row / 2][n / 2][row % 2 * 2 + n % 2] + biases[n / 2 * 8 + n % 2] < thresholds_[row])) hits |= 1u << n;
            for (; hits != 0; hits &= hits - 1) {
                const int32_t at = lowest_bit(hits), key = at / 2 * 8 + 2 * (lane_ % 4) + at % 2;
                if (attends(row, sites[key])) mine |= uint64_t{1} << key;
            }
        }
        const int32_t slot = job_.kind == kRecent ? slot_of_age(newest_, age, p_.context) : 0;
        for (int32_t first = 0; first < Sizes::kWarpKeys; first += 32) {
            const uint32_t found = t_.combine(static_cast<uint32_t>(mine >> first));
            if ((found >> lane_) & 1u) {
                const Site site = sites[first + lane_];
                const int32_t cell = cell_of(site, p_.grid);
                queue_[queued_ + count_bits(found & ((1u << lane_) - 1u))] = {
                    slot * p_.grid.cells() + cell, place_of(position(age), cell, p_.grid.cells()), site};
            }
            queued_ += count_bits(found);
        }
        t_.sync_warp();
    }

    // Multiply the last survivors of the queue in full, as `multiply` would, with their keys straight from global memory: a quad loads
    // a chunk of a key, 64 bytes that lie side by side, at once.
    VOSRT_KERNEL void multiply_queued() {
        constexpr int32_t kColumns = kAtOnce / 8;
        const int32_t count = smaller(queued_, kAtOnce);
        queued_ -= count;
        products_ += count;
        const Survivor *chosen = queue_ + queued_;
        const uint16_t *keys = job_.kind == kRecent ? p_.ring_keys : p_.references[job_.reference].keys;
        const float *bias = job_.kind == kRecent ? p_.ring_bias : p_.references[job_.reference].bias;
        const uint16_t *right[kColumns];
        for (int32_t column = 0; column < kColumns; ++column) {
            const int32_t at = 8 * column + lane_ / 4;
            right[column] = keys + static_cast<size_t>(chosen[at < count ? at : 0].row) * p_.channels + 8 * (lane_ % 4);
        }
        float sums[2][kColumns][4] = {};
#if defined(__CUDACC__)
#pragma unroll 2
#endif
        for (int32_t chunk = 0; chunk < p_.channels / kChunk; ++chunk) {
            const Eight keys_of[] = {load_global_eight(right[0] + chunk * kChunk), load_global_eight(right[1] + chunk * kChunk)};
            const Left left = load_left(queries_ + static_cast<size_t>(chunk) * Sizes::kQueries * kRowBytes);
            multiply_pair(sums, 0, left, keys_of);
        }
        const int32_t first = 2 * (lane_ % 4);
        offer_scores(
            sums,
            [&](int32_t n) {
                const int32_t at = n / 2 * 8 + first + n % 2;
                return at < count ? bias[chosen[at].row] : -INFINITY;
            },
            [&](int32_t n) {
                const int32_t at = n / 2 * 8 + first + n % 2;
                return at < count ? Key{chosen[at].site, chosen[at].place} : Key{-1, 0};
            });
        t_.sync_warp();  // before the queue's entries are overwritten
    }

    VOSRT_KERNEL bool attends(int32_t row, Site site) const {
        if (site < 0 || query_cell(row) < 0) return false;
        if (job_.kind == kReference) return true;
        const int32_t query = query_row(row);
        return p_.window.holds(row_of(site) - patch_.query_y(query), column_of(site) - patch_.query_x(query));
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
        const float threshold = threshold_of(least_[row]);
        thresholds_[row] = threshold > floors_[row] ? threshold : floors_[row];
    }

    VOSRT_KERNEL void write() {
        const int32_t cells = p_.grid.cells();
        Packed *lists = p_.lists + (static_cast<size_t>(t_.job()) * Sizes::kWarpsAcross + warp_across_) * cells * p_.top_k;
        VOSRT_UNROLL
        for (int32_t row = 0; row < 4; ++row) {
            const int32_t cell = query_cell(row);
            if (cell < 0) continue;
            VOSRT_UNROLL
            for (int32_t n = 0; n < kPerThread; ++n)
                if (4 * n + lane_ % 4 < p_.top_k) lists[static_cast<size_t>(cell) * p_.top_k + 4 * n + lane_ % 4] = lists_[row].values[n];
        }
    }

    Thread &t_;
    const MatchParams &p_;
    const Job job_;
    const QueryPatch patch_;
    const int32_t chunks_, ring_, newest_, lane_, warp_down_, warp_across_;
    std::byte *queries_, *heads_, *stages_;
    Site *sites_;
    float *biases_;
    int32_t *starts_;
    int32_t slots_, keys_per_slot_, tiles_per_slot_;

    int32_t load_tile_, load_chunk_, load_of_slot_, load_age_;
    int32_t load_cells_[2];
    const uint16_t *load_keys_;

    Share<kPerThread> lists_[4];
    Packed least_[4];
    float thresholds_[4], floors_[4];

    Survivor *queue_;
    int32_t queued_ = 0, products_ = 0;
};

}  // namespace vosrt::cuda
