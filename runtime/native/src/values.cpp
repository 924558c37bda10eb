#include "values.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "error.hpp"
#include "thread_pool.hpp"

namespace vosrt {
namespace {

constexpr int32_t kMaxTopK = 64;

struct Neighbour {
    float weight;
    size_t at;  // where its values begin
};

void check(const vosrt_values_task &task) {
    constexpr int32_t kMaxCells = 1 << 22;
    within(task.queries, 1, kMaxCells, "queries");
    within(task.top_k, 1, kMaxTopK, "top_k");
    within(task.objects, 1, 255, "objects");
    within(task.slots, 1, 65536, "slots");
    within(task.cells, 1, kMaxCells, "cells");
    within(task.channels, 1, 65536, "channels");
    within(task.threads, 0, 1024, "threads");
    if (task.temperature != 0.0f && !(task.temperature >= 1e-4f && task.temperature <= 1e4f))
        invalid("temperature is " + std::to_string(task.temperature) + "; expected 1e-4 to 1e4");
    for (int32_t object = 0; object < task.objects; ++object)
        if (task.values[object] == nullptr) invalid("values[" + std::to_string(object) + "] is NULL");
    const auto count = static_cast<size_t>(task.queries) * task.top_k;
    for (size_t i = 0; i < count; ++i) {
        within(task.slot[i], -1, task.slots - 1, "slot");
        if (task.slot[i] >= 0) within(task.cell[i], 0, task.cells - 1, "cell");
    }
}

// The neighbours that a query has, with the softmax of their similarities; returns how many.
int32_t weigh(const vosrt_values_task &task, float temperature, int32_t query, Neighbour *near) {
    const auto first = static_cast<size_t>(query) * task.top_k;
    float largest = -std::numeric_limits<float>::infinity();
    int32_t count = 0;
    for (size_t i = first; i < first + task.top_k; ++i) {
        if (task.slot[i] < 0) continue;
        const float scaled = task.similarity[i] / temperature;
        largest = std::max(largest, scaled);
        near[count++] = {scaled, (static_cast<size_t>(task.slot[i]) * task.cells + task.cell[i]) * task.channels};
    }
    float total = 0.0f;
    for (int32_t i = 0; i < count; ++i) total += near[i].weight = std::exp(near[i].weight - largest);
    for (int32_t i = 0; i < count; ++i) near[i].weight /= total;
    return count;
}

void read(const vosrt_values_task &task, float temperature, int32_t query) {
    Neighbour near[kMaxTopK];
    const int32_t count = weigh(task, temperature, query, near);
    const auto channels = static_cast<size_t>(task.channels);
    for (int32_t object = 0; object < task.objects; ++object) {
        float *out = task.out + (static_cast<size_t>(object) * task.queries + query) * channels;
        std::fill_n(out, channels, 0.0f);
        for (int32_t i = 0; i < count; ++i) {
            const float *values = task.values[object] + near[i].at;
            const float weight = near[i].weight;
            for (size_t c = 0; c < channels; ++c) out[c] += weight * values[c];
        }
    }
}

}  // namespace

void read_values(const vosrt_values_task &task) {
    check(task);
    const float temperature = task.temperature == 0.0f ? 0.05f : task.temperature;
    constexpr int32_t kRun = 512;  // queries of one job
    const int32_t jobs = (task.queries + kRun - 1) / kRun;
    const auto processors = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
    ThreadPool pool(std::min(jobs, task.threads == 0 ? processors : task.threads));
    pool.run(jobs, [&](int32_t job, int32_t) {
        const int32_t end = std::min(task.queries, (job + 1) * kRun);
        for (int32_t query = job * kRun; query < end; ++query) read(task, temperature, query);
    });
}

}  // namespace vosrt
