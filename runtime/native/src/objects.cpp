#include "objects.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

namespace vosrt {
namespace {

struct Sums {
    int64_t area = 0, twice_x = 0, y = 0;  // whole numbers, so that a centroid does not depend on the order of summation
    double confidence = 0.0;
    int32_t left = std::numeric_limits<int32_t>::max(), right = 0, top = 0, bottom = 0;
};

// Past the pixels that have the label of pixel `x`. Eight are compared at once: most runs are background and long.
int32_t end_of_run(const uint8_t *row, int32_t x, int32_t width) {
    const uint8_t label = row[x];
    const uint64_t eight = 0x0101010101010101u * label;
    for (uint64_t word; x + 8 <= width; x += 8) {
        std::memcpy(&word, row + x, sizeof word);
        if (word != eight) break;
    }
    while (x < width && row[x] == label) ++x;
    return x;
}

void add_run(Sums &sums, int32_t y, int32_t begin, int32_t end, const float *confidence) {
    const int64_t length = end - begin;
    if (sums.area == 0) sums.top = y;
    sums.bottom = y + 1;
    sums.left = std::min(sums.left, begin);
    sums.right = std::max(sums.right, end);
    sums.area += length;
    sums.twice_x += length * (begin + end - 1);
    sums.y += length * y;
    for (int32_t x = begin; confidence != nullptr && x < end; ++x) sums.confidence += static_cast<double>(confidence[x]);
}

}  // namespace

void measure_objects(const LabelMap &map, std::span<const uint8_t> ids, vosrt_object *objects) {
    std::array<Sums, 256> all;
    for (int32_t y = 0; y < map.height; ++y) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(y) * map.width;
        const uint8_t *row = map.labels + at;
        const float *confidence = map.confidence == nullptr ? nullptr : map.confidence + at;
        for (int32_t x = 0, end; x < map.width; x = end) {
            end = end_of_run(row, x, map.width);
            if (row[x] != 0) add_run(all[row[x]], y, x, end, confidence);
        }
    }
    for (const uint8_t id : ids) {
        const Sums &sums = all[id];
        vosrt_object &out = *objects++ = {};
        out.struct_size = sizeof out;
        out.id = id;
        out.state = sums.area == 0 ? VOSRT_STATE_LOST : VOSRT_STATE_PRESENT;
        if (sums.area == 0) continue;
        const auto area = static_cast<double>(sums.area);
        out.present = 1;
        out.area_px = sums.area;
        out.x = sums.left;
        out.y = sums.top;
        out.width = sums.right - sums.left;
        out.height = sums.bottom - sums.top;
        out.confidence = static_cast<float>(sums.confidence / area);
        out.centroid_x = static_cast<double>(sums.twice_x) / (2.0 * area);
        out.centroid_y = static_cast<double>(sums.y) / area;
    }
}

}  // namespace vosrt
