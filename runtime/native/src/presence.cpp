#include "presence.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <string>

#include "error.hpp"

namespace vosrt {
namespace {

constexpr int32_t kAreas = std::size(vosrt_presence{}.areas_px);

enum class Seen {
    kNot,
    kHardly,
    kSomewhat,
    kClearly
};

struct State {
    int32_t state, streak;
};

double usual_area(const vosrt_presence &presence) {
    std::array<int64_t, kAreas> areas;
    const auto end = std::copy_n(presence.areas_px, presence.count, areas.begin());
    const auto middle = areas.begin() + presence.count / 2;
    std::nth_element(areas.begin(), middle, end);
    return static_cast<double>(*middle);
}

Seen seen(const PresenceOptions &options, double share) {
    if (share <= 0.0) return Seen::kNot;
    if (share < options.lost_share) return Seen::kHardly;
    return share < options.clear_share ? Seen::kSomewhat : Seen::kClearly;
}

State next(const PresenceOptions &options, State before, Seen now, double confidence) {
    if (now == Seen::kNot) return {VOSRT_STATE_LOST, 0};
    const int32_t streak = before.streak + 1;
    if (before.state == VOSRT_STATE_LOST) {
        if (now == Seen::kHardly || confidence < options.back_confidence) return {VOSRT_STATE_LOST, 0};
        const bool back = now == Seen::kClearly || streak >= options.back_after;
        return back ? State{VOSRT_STATE_BACK, 1} : State{VOSRT_STATE_LOST, streak};
    }
    if (now == Seen::kHardly) {
        const int32_t hardly = before.state == VOSRT_STATE_UNSURE ? streak : 1;
        return hardly >= options.lost_after ? State{VOSRT_STATE_LOST, 0} : State{VOSRT_STATE_UNSURE, hardly};
    }
    if (now == Seen::kSomewhat) return {VOSRT_STATE_UNSURE, 0};
    return before.state == VOSRT_STATE_BACK && streak <= options.back_for ? State{VOSRT_STATE_BACK, streak} : State{VOSRT_STATE_PRESENT, 0};
}

// The newest frame becomes one of those before.
void begin_frame(vosrt_presence &presence) {
    presence.state_before = presence.state;
    presence.streak_before = presence.streak;
    if (presence.area_px == 0) return;
    if (presence.area_px < 0) presence.count = 0;
    if (presence.count == kAreas) {
        std::copy(presence.areas_px + 1, presence.areas_px + kAreas, presence.areas_px);
        --presence.count;
    }
    presence.areas_px[presence.count++] = std::abs(presence.area_px);
}

double confidence_of(const vosrt_object &object) {
    return object.confidence > 0.0f ? std::min(static_cast<double>(object.confidence), 1.0) : 1.0;  // 0: not measured
}

// The IoU to expect of a mask whose pixels have this mean confidence, which promises too much by itself.
double expected_iou(const PresenceOptions &options, double confidence) {
    if (confidence >= 1.0) return 1.0;
    const double odds = options.iou_factor * std::pow(confidence / (1.0 - confidence), options.iou_power);
    return odds / (1.0 + odds);
}

double state_confidence(const PresenceOptions &options, int32_t state, double confidence, double share) {
    const double clear = std::clamp(share / options.clear_share, 0.0, 1.0);
    return state == VOSRT_STATE_LOST ? 1.0 - clear * confidence : clear * expected_iou(options, confidence);
}

}  // namespace

void follow_object(const PresenceOptions &options, vosrt_presence &presence, int64_t frame, vosrt_object &object) {
    if (presence.count < 0 || presence.count > kAreas) invalid("presence is not what vosrt_follow_object left in it; zero it");
    if (frame < 0 || frame == std::numeric_limits<int64_t>::max() || frame + 1 < presence.frames)
        invalid("frame is " + std::to_string(frame) + "; expected one from " + std::to_string(std::max<int64_t>(presence.frames - 1, 0)));
    if (frame + 1 != presence.frames) begin_frame(presence);
    presence.frames = frame + 1;
    const auto area = static_cast<double>(object.area_px);
    const bool annotated = object.area_px > 0 && object.confidence >= 1.0f;
    const bool is_first = presence.count == 0;
    const double share = annotated || is_first ? (object.area_px > 0 ? 1.0 : 0.0) : area / usual_area(presence);
    const Seen now = seen(options, share);
    // An object that was never seen does not come back.
    const State before = is_first ? State{VOSRT_STATE_PRESENT, 0} : State{presence.state_before, presence.streak_before};
    const State state = next(options, before, now, confidence_of(object));
    presence.state = object.state = state.state;
    presence.streak = state.streak;
    const bool counts = state.state != VOSRT_STATE_LOST && now != Seen::kHardly;
    // An annotation says how large the object is; and one that stays small after its return has become so.
    const bool replaces = annotated || (before.state == VOSRT_STATE_LOST && now == Seen::kSomewhat);
    presence.area_px = !counts ? 0 : replaces ? -object.area_px
                                              : object.area_px;
    object.state_confidence = static_cast<float>(state_confidence(options, state.state, confidence_of(object), share));
}

}  // namespace vosrt
