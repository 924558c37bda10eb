#include "memory.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "error.hpp"

namespace vosrt {
namespace {

// Soft masks of a frame once `grid` was marked in it: the marked objects are as marked, what they had before becomes background, and
// the others share what the marks leave of each cell.
void mark_cells(const GridMask &grid, const ObjectTable &before, const ObjectTable &after, int32_t cells, size_t capacity, float *all) {
    const size_t count = grid.ids.size();
    std::array<bool, 256> is_marked{};
    for (const uint8_t id : grid.ids) is_marked[after.channel(id)] = true;
    for (int32_t cell = 0; cell < cells; ++cell) {
        const float *added = grid.soft.data() + cell * count;
        float *soft = all + cell * capacity;
        // Rounding may carry the sum just past 1; soft masks are never negative.
        const float kept = std::max(0.0f, 1.0f - std::accumulate(added, added + count, 0.0f));
        for (const uint8_t id : grid.ids)
            if (before.channel(id) >= 0) soft[0] += soft[before.channel(id)];
        for (size_t c = 0; c < capacity; ++c)
            if (!is_marked[c]) soft[c] *= kept;
        for (size_t i = 0; i < count; ++i) soft[after.channel(grid.ids[i])] = added[i];
    }
}

}  // namespace

std::vector<int32_t> window_half_widths(const MemoryOptions &options) {
    const auto extent = static_cast<double>(std::max(options.height, options.width));
    const double radius = std::min(static_cast<double>(options.radius), extent);
    const auto inside = [&](int64_t dx, int64_t dy) {
        return static_cast<double>(dx * dx + dy * dy) < static_cast<double>(options.radius) * options.radius;
    };
    auto reach = static_cast<int32_t>(radius);
    while (reach > 0 && !inside(0, reach)) --reach;
    std::vector<int32_t> half_widths(reach + 1, reach);
    for (int32_t dy = 0; dy <= reach; ++dy)
        while (half_widths[dy] >= 0 && !inside(half_widths[dy], dy)) --half_widths[dy];
    return half_widths;
}

std::unique_ptr<Memory> Memory::create(const MemoryOptions &options) {
    std::unique_ptr<Memory> memory = open_memory(options);
    memory->reserve_frames(0, int64_t{options.context} + 1);
    return memory;
}

std::unique_ptr<Memory> Memory::load(const MemoryOptions &options, SessionReader &in) {
    std::unique_ptr<Memory> memory = open_memory(options);
    memory->read(in);
    return memory;
}

void Memory::require_frame(const char *what) const {
    if (objects_.frames() == 0) invalid(std::string(what) + " needs a frame; push one first");
}

void Memory::prepare_frame() {
    // After a session was loaded, room is made as frames come; otherwise all of this is there.
    reserve_frames(objects_.frames(), objects_.frames() + 1);
    if (objects_.references().empty()) return;
    reserve_work(objects_.references().size());
    matched_.reserve(objects_.references().size());
}

void Memory::begin_frame() {
    ++revision_;
    objects_.take_frame();
    matched_.clear();
    for (const ObjectTable::Reference &reference : objects_.references()) {
        const auto recent = static_cast<int32_t>(std::min<int64_t>(options_.context, objects_.newest() - reference.frame));
        matched_.push_back({reference.frame, recent, options_.pad_context ? options_.context - recent : 0});
    }
}

void Memory::drop_frame(std::vector<Matched> before) {
    objects_.drop_frame();
    matched_ = std::move(before);
}

void Memory::push(const float *embedding) {
    prepare_frame();
    take(embedding);
}

void Memory::annotate(const uint8_t *mask, int32_t height, int32_t width, int64_t stride) {
    require_frame("annotating");
    const GridMask grid = resize_mask(mask, height, width, stride, options_.mask_height(), options_.mask_width(), options_.alignment);
    // Whatever can run out of memory comes first, so that a failure leaves everything as it was.
    ObjectTable after = objects_;
    after.mark(grid.ids);
    const std::function<void(const HostSlot &)> mark = [&](const HostSlot &slot) {
        mark_cells(grid, objects_, after, mask_cells(), capacity(), slot.soft);
    };
    matched_.reserve(after.references().size());
    reserve_work(after.references().size());
    reserve_objects(after);

    ++revision_;
    with_slot({objects_.newest()}, Part::soft, Access::edit, mark);
    objects_ = std::move(after);
    keep_reference();
    objects_changed();
}

void Memory::remove(int32_t object_id) {
    ObjectTable after = objects_;
    release(after.remove(object_id));
    ++revision_;
    objects_ = std::move(after);
    objects_changed();
}

void Memory::guide(const uint8_t *bgr, int32_t height, int32_t width, int64_t stride) {
    require_frame("a picture");
    ++revision_;
    if (options_.guided != 0) set_guide(bgr, height, width, stride);
}

void Memory::soft_masks(float *masks) {
    require_frame("reading soft masks");
    const std::vector<int32_t> &channels = objects_.order_channels();
    with_slot({objects_.newest()}, Part::soft, Access::read, [&](const HostSlot &slot) {
        for (int32_t cell = 0; cell < mask_cells(); ++cell)
            for (const int32_t channel : channels) *masks++ = slot.soft[cell * capacity() + channel];
    });
}

void Memory::set_soft_masks(const float *masks) {
    require_frame("setting soft masks");
    const std::vector<int32_t> &channels = objects_.order_channels();
    for (size_t i = 0; i < mask_cells() * channels.size(); ++i)
        if (!(masks[i] >= 0.0f && std::isfinite(masks[i])))
            invalid("a soft mask holds " + std::to_string(masks[i]) + "; expected finite values of at least 0");
    ++revision_;
    with_slot({objects_.newest()}, Part::soft, Access::edit, [&](const HostSlot &slot) {
        for (int32_t cell = 0; cell < mask_cells(); ++cell)
            for (const int32_t channel : channels) slot.soft[cell * capacity() + channel] = *masks++;
    });
}

void Memory::top_k(float *similarity, int32_t *frame, int32_t *cell) {
    const auto count = static_cast<size_t>(cells()) * options_.top_k;
    for (size_t r = 0; r < matched_.size(); ++r) {
        const Candidate *found = neighbours(r);
        for (size_t i = 0; i < count; ++i) {
            *similarity++ = found[i].similarity;
            *cell++ = found[i].cell;
            const bool recent = found[i].position > matched_[r].copies;
            const int64_t from = recent ? objects_.newest() - (options_.context + 1 - found[i].position) : matched_[r].frame;
            *frame++ = found[i].cell < 0 ? -1 : static_cast<int32_t>(from);
        }
    }
}

}  // namespace vosrt
