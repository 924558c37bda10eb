#include "object_table.hpp"

#include <algorithm>
#include <string>

#include "error.hpp"

namespace vosrt {

ObjectTable::ObjectTable(int64_t frames, std::span<const uint8_t> ids, std::vector<Reference> references)
    : frames_(frames), references_(std::move(references)) {
    for (size_t i = 0; i < ids.size(); ++i) channel_[ids[i]] = static_cast<int32_t>(i + 1);
    update_order();
}

int32_t ObjectTable::references_in_use() const {
    return static_cast<int32_t>(std::count_if(references_.begin(), references_.end(),
                                              [](const Reference &reference) { return !reference.ids.empty(); }));
}

bool ObjectTable::has_reference(int64_t frame) const {
    return std::any_of(references_.begin(), references_.end(), [&](const Reference &reference) { return reference.frame == frame; });
}

void ObjectTable::mark(std::span<const uint8_t> ids) {
    std::array<bool, 257> used{};
    for (const int32_t channel : order_channels_) used[channel] = true;
    for (const uint8_t id : ids) {
        if (channel_[id] < 0) {
            // The lowest free channel: soft masks stay as narrow as the number of objects allows.
            channel_[id] = static_cast<int32_t>(std::find(used.begin(), used.end(), false) - used.begin());
            used[channel_[id]] = true;
        }
        for (Reference &reference : references_) std::erase(reference.ids, id);
    }
    if (!has_reference(newest())) references_.push_back({newest(), {}});
    std::vector<uint8_t> &own = references_.back().ids;
    own.insert(own.end(), ids.begin(), ids.end());
    drop_idle_references();
    update_order();
}

int32_t ObjectTable::remove(int32_t id) {
    if (id < 1 || id > 255 || channel_[id] < 0) invalid("object " + std::to_string(id) + " is not tracked; nothing to remove");
    const int32_t channel = channel_[id];
    channel_[id] = -1;
    for (Reference &reference : references_) std::erase(reference.ids, static_cast<uint8_t>(id));
    drop_idle_references();
    update_order();
    return channel;
}

void ObjectTable::drop_idle_references() {
    references_.erase(std::remove_if(references_.begin() + 1, references_.end(),
                                     [](const Reference &reference) { return reference.ids.empty(); }),
                      references_.end());
}

void ObjectTable::update_order() {
    order_channels_.assign(1, 0);
    order_ids_.assign(1, 0);
    for (int32_t id = 1; id < 256; ++id)
        if (channel_[id] >= 0) {
            order_channels_.push_back(channel_[id]);
            order_ids_.push_back(static_cast<uint8_t>(id));
        }
}

}  // namespace vosrt
