#include "values.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "error.hpp"
#include "ranges.hpp"
#include "thread_pool.hpp"

namespace vosrt {
namespace {

constexpr int32_t kMaxTopK = 64;
constexpr int32_t kRun = 512;  // queries of one job

struct Neighbour {
    float weight;
    size_t at;  // where its values begin
};

int32_t runs_of(const vosrt_values_task &task) { return (task.queries + kRun - 1) / kRun; }

void check(const vosrt_values_task &task) {
    constexpr int32_t kMaxCells = 1 << 22;
    within(task.queries, 1, kMaxCells, "queries");
    within(task.top_k, 1, kMaxTopK, "top_k");
    within(task.objects, 1, 255, "objects");
    within(task.slots, 1, 65536, "slots");
    within(task.cells, 1, kMaxCells, "cells");
    within(task.channels, 1, 65536, "channels");
    within(task.threads, 0, 1024, "threads");
    ranges::temperature.check(task.temperature);
    for (int32_t object = 0; object < task.objects; ++object)
        if (task.values[object] == nullptr) invalid("values[" + std::to_string(object) + "] is NULL");
    const auto count = static_cast<size_t>(task.queries) * task.top_k;
    for (size_t i = 0; i < count; ++i) {
        within(task.slot[i], -1, task.slots - 1, "slot");
        if (task.slot[i] >= 0) within(task.cell[i], 0, task.cells - 1, "cell");
    }
}

// The softmax of a query's similarities; where a neighbour is missing, the weight is 0 and its values are the first.
void weigh(const vosrt_values_task &task, int32_t query, Neighbour *near) {
    const auto first = static_cast<size_t>(query) * task.top_k;
    const float *similarity = task.similarity + first;
    const int32_t *slot = task.slot + first, *cell = task.cell + first;
    float largest = -std::numeric_limits<float>::infinity(), total = 0.0f;
    for (int32_t i = 0; i < task.top_k; ++i)
        if (slot[i] >= 0) largest = std::max(largest, similarity[i] / task.temperature);
    for (int32_t i = 0; i < task.top_k; ++i) {
        near[i] = {};
        if (slot[i] < 0) continue;
        near[i] = {std::exp(similarity[i] / task.temperature - largest),
                   (static_cast<size_t>(slot[i]) * task.cells + cell[i]) * task.channels};
        total += near[i].weight;
    }
    for (int32_t i = 0; total > 0.0f && i < task.top_k; ++i) near[i].weight /= total;
}

// `out` is f32 [channels].
void read(const vosrt_values_task &task, const Neighbour *near, const float *values, float *out) {
    const auto channels = static_cast<size_t>(task.channels);
    std::fill_n(out, channels, 0.0f);
    for (int32_t i = 0; i < task.top_k; ++i) {
        if (near[i].weight == 0.0f) continue;
        const float *from = values + near[i].at;
        for (size_t c = 0; c < channels; ++c) out[c] += near[i].weight * from[c];
    }
}

void read_all(const vosrt_values_task &task, ThreadPool &pool) {
    const int32_t runs = runs_of(task);
    std::vector<Neighbour> near(static_cast<size_t>(task.queries) * task.top_k);
    const auto for_each_query = [&](int32_t run, const auto &body) {
        const int32_t end = std::min(task.queries, (run + 1) * kRun);
        for (int32_t query = run * kRun; query < end; ++query) body(query, &near[static_cast<size_t>(query) * task.top_k]);
    };
    pool.run(runs, [&](int32_t run, int32_t) {
        for_each_query(run, [&](int32_t query, Neighbour *found) { weigh(task, query, found); });
    });
    // Object by object: queries beside each other read the same values, which stay in the cache.
    pool.run(task.objects * runs, [&](int32_t job, int32_t) {
        const int32_t object = job / runs;
        float *out = task.out + static_cast<size_t>(object) * task.queries * task.channels;
        for_each_query(job % runs, [&](int32_t query, const Neighbour *found) {
            read(task, found, task.values[object], out + static_cast<size_t>(query) * task.channels);
        });
    });
}

}  // namespace

void read_values(const vosrt_values_task &task) {
    check(task);
    const auto processors = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
    ThreadPool pool(std::min(runs_of(task), task.threads == 0 ? processors : task.threads));
    read_all(task, pool);
}

void read_values(const vosrt_values_task &task, ThreadPool &pool) {
    check(task);
    read_all(task, pool);
}

}  // namespace vosrt
