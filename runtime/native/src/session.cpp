#include "session.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>

#include "isa.hpp"
#include "sha256.hpp"

namespace vosrt {
namespace {

static_assert(std::endian::native == std::endian::little, "sessions are little-endian");

constexpr char kMagic[8] = {'V', 'O', 'S', 'R', 'T', 'S', 'E', 'S'};
// 1 does not say how the grid is aligned: its corners are; 1 and 2 alter no embeddings or masks; 1 to 3 calibrate nothing;
// 1 to 4 know nothing of motion; 1 to 5 have the default thresholds of what becomes of objects; 1 to 6 do not divide cells.
constexpr uint32_t kVersion = 7;
constexpr size_t kHashAt = 24, kHeaderBytes = kHashAt + 32;
constexpr int32_t kCircle = 0;  // the shape of the window
constexpr bool kGlobalReference = true;
constexpr int64_t kMaxFrames = int64_t{1} << 40;

// Recent frames that a later one may read, and the newest one, whose soft masks are asked for.
int64_t kept_frames(int64_t frames, int32_t context) { return std::min<int64_t>(frames, std::max(context, 1)); }

size_t key_bytes(const MemoryOptions &options) { return options.channels * (isa_is_bf16(options.isa) ? 2 : sizeof(float)); }

std::array<uint8_t, 32> hash_of(std::span<const uint8_t> data) {
    Sha256 hash;
    hash.update(data);
    return hash.finish();
}

void write_all(SessionWriter &out, Memory &memory, const vosrt_session &session) {
    out.bytes(kMagic, sizeof kMagic);
    out.put(kVersion);
    out.put(static_cast<uint32_t>(kHeaderBytes));
    out.put(uint64_t{0});  // size and hash follow when everything is there
    out.skip(32);
    out.bytes(session.model, sizeof session.model);
    out.put(session.frame_height);
    out.put(session.frame_width);
    out.put(static_cast<uint32_t>(session.annotation != nullptr));
    const MemoryOptions &options = memory.options();
    for (const int32_t value : {options.height, options.width, options.channels, options.context, kCircle})
        out.put(value);
    out.put(options.radius);
    out.put(options.top_k);
    out.put(options.temperature);
    for (const bool value : {options.pad_context, kGlobalReference, options.yield_background})
        out.put(static_cast<int32_t>(value));
    out.put(static_cast<int32_t>(options.isa));
    out.put(static_cast<int32_t>(options.alignment == Alignment::half_pixel));
    for (const float value : {options.centring, options.sharpness, options.object_bias}) out.put(value);
    out.put(options.guided);
    out.put(options.calibration);
    out.put(options.motion);
    const PresenceOptions &presence = options.presence;
    for (const int32_t value : {presence.lost_after, presence.back_after, presence.back_for}) out.put(value);
    for (const double value : {presence.lost_share, presence.clear_share, presence.back_confidence, presence.iou_factor, presence.iou_power}) out.put(value);
    out.put(options.parts);
    memory.write(out);
    if (session.annotation != nullptr)
        out.bytes(session.annotation, static_cast<size_t>(session.frame_height) * session.frame_width);
}

void check(const vosrt_session &session) {
    within(session.frame_height, 0, kMaxSide, "session.frame_height");
    within(session.frame_width, 0, kMaxSide, "session.frame_width");
}

}  // namespace

size_t session_size(Memory &memory, const vosrt_session &session) {
    if (memory.objects().frames() == 0) invalid("saving needs a frame; push one first");
    check(session);
    SessionWriter counter;
    write_all(counter, memory, session);
    return counter.size();
}

void save_session(Memory &memory, const vosrt_session &session, std::span<uint8_t> buffer) {
    SessionWriter out(buffer.data());
    write_all(out, memory, session);
    const uint64_t total = buffer.size();
    std::memcpy(buffer.data() + 16, &total, sizeof total);
    const auto hash = hash_of(buffer.subspan(kHeaderBytes));
    std::memcpy(buffer.data() + kHashAt, hash.data(), hash.size());
}

SessionReader::SessionReader(std::span<const uint8_t> data) : data_(data) {
    if (data.size() < kHeaderBytes || std::memcmp(bytes(sizeof kMagic), kMagic, sizeof kMagic) != 0)
        refuse("it does not begin as sessions of vosrt do");
    const auto version = get<uint32_t>(), header = get<uint32_t>();
    const auto total = get<uint64_t>();
    if (version < 1 || version > kVersion)
        refuse("it has format " + std::to_string(version) + "; this libvosrt reads up to " + std::to_string(kVersion));
    if (header != kHeaderBytes) refuse("its header is damaged");
    if (total != data.size())
        refuse("it has " + std::to_string(data.size()) + " bytes and says " + std::to_string(total));
    const uint8_t *stated = bytes(32);
    const auto hash = hash_of(data_);
    if (!std::equal(hash.begin(), hash.end(), stated)) refuse("its content does not match its hash");

    std::memcpy(session_.model, bytes(sizeof session_.model), sizeof session_.model);
    session_.struct_size = sizeof session_;
    session_.frame_height = get<int32_t>();
    session_.frame_width = get<int32_t>();
    if (std::min(session_.frame_height, session_.frame_width) < 0 ||
        std::max(session_.frame_height, session_.frame_width) > kMaxSide)
        refuse("its frame size is impossible");
    annotated_ = get<uint32_t>() != 0;
    options_.struct_size = sizeof options_;
    options_.height = get<int32_t>();
    options_.width = get<int32_t>();
    options_.channels = get<int32_t>();
    options_.context = get<int32_t>();
    const auto window = get<int32_t>();
    options_.radius = get<float>();
    options_.top_k = get<int32_t>();
    options_.temperature = get<float>();
    const auto flag = [&] { return static_cast<int32_t>(get<int32_t>() != 0); };
    options_.pad_context = flag();
    if (window != kCircle || flag() != kGlobalReference)
        refuse("it has a square window or a reference that is searched locally, which this libvosrt does not do");
    options_.yield_background = flag();
    options_.isa = get<int32_t>();
    if (version >= 2) {
        const auto half_pixel = get<int32_t>();
        if (half_pixel != 0 && half_pixel != 1) refuse("it does not say how its grid is aligned");
        options_.align_corners = 1 - half_pixel;
    }
    if (version >= 3) {
        for (float *value : {&options_.centring, &options_.sharpness, &options_.object_bias}) *value = get<float>();
        options_.guided = get<int32_t>();
    }
    if (version >= 4) options_.calibration = get<int32_t>();
    if (version >= 5) options_.motion = get<float>();
    if (version >= 6) {
        for (int32_t *value : {&options_.lost_after, &options_.back_after, &options_.back_for}) *value = get<int32_t>();
        for (double *value : {&options_.lost_share, &options_.clear_share, &options_.back_confidence, &options_.iou_factor, &options_.iou_power}) *value = get<double>();
    }
    if (version >= 7) options_.parts = get<int32_t>();
}

void SessionReader::check_network(const vosrt_load_options &wanted) const {
    const auto known = [](const uint8_t *hash) { return hash != nullptr && std::any_of(hash, hash + 32, [](uint8_t byte) { return byte != 0; }); };
    const bool other_hash = known(wanted.model) && known(session_.model) && !std::equal(session_.model, session_.model + 32, wanted.model);
    if (other_hash || (wanted.channels != 0 && wanted.channels != options_.channels))
        refuse("it was saved with another network; load the model that it was saved with");
    const int32_t side = std::max(options_.height, options_.width);
    if (wanted.max_side != 0 && side > wanted.max_side)
        refuse("its grid has " + std::to_string(side) + " cells a side; those of this network have at most " + std::to_string(wanted.max_side));
}

std::unique_ptr<Memory> SessionReader::read(const vosrt_load_options &wanted) {
    check_network(wanted);
    auto memory = Memory::load(memory_options(wanted), *this);
    if (annotated_ && session_.frame_height > 0 && session_.frame_width > 0)
        session_.annotation = bytes(static_cast<size_t>(session_.frame_height) * session_.frame_width);
    if (remaining() != 0) refuse("it goes on after its end");
    return memory;
}

MemoryOptions SessionReader::memory_options(const vosrt_load_options &wanted) const {
    if (options_.isa <= VOSRT_ISA_AUTO || options_.isa > kLastIsa) refuse("its instruction-set path is unknown");
    const auto saved = static_cast<vosrt_isa>(options_.isa);
    vosrt_memory_options options = options_;
    options.isa = wanted.isa;
    options.threads = wanted.threads;
    options.precision = isa_is_bf16(saved) ? VOSRT_PRECISION_BF16 : VOSRT_PRECISION_FP32;
    if (wanted.precision != VOSRT_PRECISION_AUTO && wanted.precision != options.precision)
        throw Error(VOSRT_UNSUPPORTED, std::string("the session holds ") + (isa_is_bf16(saved) ? "bf16" : "fp32") +
                                           " keys; it cannot continue in the other precision");
    options.device = wanted.device;
    const char *forced = std::getenv("VOSRT_ISA");
    if (options.isa == VOSRT_ISA_AUTO && (forced == nullptr || *forced == '\0') && isa_available(saved))
        options.isa = saved;
    within(wanted.threads, 0, 1024, "threads");
    within(wanted.isa, VOSRT_ISA_AUTO, kLastIsa, "isa");
    MemoryOptions out;
    try {
        out = resolve(options);
    } catch (const Error &error) {
        if (error.status() != VOSRT_INVALID_ARGUMENT || (forced != nullptr && *forced != '\0')) throw;
        refuse(error.what());
    }
    // A few bytes must not ask for gigabytes.
    int64_t frames = 0;
    if (remaining() >= sizeof frames) std::memcpy(&frames, data_.data(), sizeof frames);
    const int64_t kept = kept_frames(frames, out.context);
    const int64_t slot = static_cast<int64_t>(out.height) * out.width * out.channels * 2;
    if (kept < 1 || static_cast<int64_t>(remaining()) / slot < kept) refuse("it ends too early");
    return out;
}

// ---- the memory's own part -----------------------------------------------------------------------------

namespace {

void check_ids(std::span<const uint8_t> ids) {
    for (size_t i = 0; i < ids.size(); ++i)
        if (ids[i] == 0 || (i > 0 && ids[i] <= ids[i - 1])) SessionReader::refuse("its object ids are out of order");
}

std::vector<float> read_mean(SessionReader &in, int32_t channels) {
    std::vector<float> mean(channels);
    std::memcpy(mean.data(), in.bytes(mean.size() * sizeof(float)), mean.size() * sizeof(float));
    return mean;
}

std::vector<ObjectTable::Reference> read_references(SessionReader &in, uint32_t count, int64_t frames, std::span<const uint8_t> ids) {
    std::vector<ObjectTable::Reference> references;
    std::array<int32_t, 256> references_of{};  // of an id; every object has exactly one
    for (uint32_t r = 0; r < count; ++r) {
        const auto frame = in.get<int64_t>();
        if (frame < 0 || frame >= frames || (r > 0 && frame <= references.back().frame)) in.refuse("its references are out of order");
        const auto objects = in.get<uint32_t>();
        if (objects > 255 || (objects == 0 && r > 0)) in.refuse("a reference has an impossible number of objects");
        const uint8_t *own = in.bytes(objects);
        references.push_back({frame, {own, own + objects}});
        for (const uint8_t id : references.back().ids) {
            if (!std::binary_search(ids.begin(), ids.end(), id)) in.refuse("a reference names an object that is not tracked");
            ++references_of[id];
        }
    }
    if (std::any_of(ids.begin(), ids.end(), [&](uint8_t id) { return references_of[id] != 1; }))
        in.refuse("an object does not have exactly one reference");
    return references;
}

}  // namespace

size_t Memory::slot_bytes(const ObjectTable &table) const {
    const bool bf16 = isa_is_bf16(options_.isa);
    return cells() * (key_bytes(options_) + (bf16 ? sizeof(float) : 0)) + mask_cells() * table.order_ids().size() * sizeof(float);
}

void Memory::write_slot(SessionWriter &out, Place place) {
    if (out.counting()) return out.skip(slot_bytes(objects_));
    with_slot(place, Part::whole, Access::read, [&](const HostSlot &slot) {
        for (int32_t cell = 0; cell < cells(); ++cell) {
            out.bytes(slot.keys + cell * slot.key_stride, key_bytes(options_));
            if (slot.bias != nullptr) out.bytes(slot.bias + cell * slot.bias_stride, sizeof(float));
        }
        for (int32_t cell = 0; cell < mask_cells(); ++cell)
            for (const int32_t channel : objects_.order_channels()) out.put(slot.soft[cell * capacity() + channel]);
    });
}

void Memory::read_slot(SessionReader &in, Place place) {
    const size_t stored = key_bytes(options_);
    with_slot(place, Part::whole, Access::write, [&](const HostSlot &slot) {
        for (int32_t cell = 0; cell < cells(); ++cell) {
            std::memcpy(slot.keys + cell * slot.key_stride, in.bytes(stored), stored);
            if (slot.bias != nullptr) std::memcpy(slot.bias + cell * slot.bias_stride, in.bytes(sizeof(float)), sizeof(float));
        }
        for (int32_t cell = 0; cell < mask_cells(); ++cell)
            for (const int32_t channel : objects_.order_channels()) slot.soft[cell * capacity() + channel] = in.get<float>();
    });
}

void Memory::write(SessionWriter &out) {
    const std::span<const uint8_t> ids = objects_.ids();
    out.put(objects_.frames());
    out.put(static_cast<uint32_t>(ids.size()));
    out.put(static_cast<uint32_t>(objects_.references().size()));
    out.bytes(ids.data(), ids.size());
    const Means both = means();
    for (const std::vector<float> *each : {&both.keys, &both.centre}) out.bytes(each->data(), each->size() * sizeof(float));
    for (const ObjectTable::Reference &reference : objects_.references()) {
        out.put(reference.frame);
        out.put(static_cast<uint32_t>(reference.ids.size()));
        out.bytes(reference.ids.data(), reference.ids.size());
    }
    if (options_.calibration != 0) {
        const Biases biases_of = biases();
        for (const uint8_t id : ids) out.put(biases_of[objects_.channel(id)]);
    }
    if (options_.guided != 0) {
        const GuidePicture guide = guide_picture();
        out.put(guide.height);
        out.put(guide.width);
        out.bytes(guide.pixels.data(), guide.height == 0 ? 0 : guide.pixels.size());
    }
    const int64_t frames = objects_.frames();
    for (int64_t frame = frames - kept_frames(frames, options_.context); frame < frames; ++frame) write_slot(out, {frame});
    for (const ObjectTable::Reference &reference : objects_.references()) write_slot(out, {reference.frame, true});
}

// Everything is checked, the number of bytes that follow too, before room is made for it: a session is not trusted.
void Memory::read(SessionReader &in) {
    const auto frames = in.get<int64_t>();
    const auto count = in.get<uint32_t>(), references = in.get<uint32_t>();
    if (frames < 1 || frames > kMaxFrames || count > 255 || references > 256) in.refuse("its counters are impossible");
    const std::span ids(in.bytes(count), count);
    check_ids(ids);
    Means both{read_mean(in, options_.channels), {}};
    if (options_.centring != 0.0f) both.centre = read_mean(in, options_.channels);
    ObjectTable table(frames, ids, read_references(in, references, frames, ids));
    Biases biases;
    biases.fill(options_.object_bias);
    if (options_.calibration != 0)
        for (const uint8_t id : ids)
            if (float &bias = biases[table.channel(id)]; !std::isfinite(bias = in.get<float>())) in.refuse("an object's bias is no number");
    GuidePicture guide;
    if (options_.guided != 0) {
        guide.height = in.get<int32_t>();
        guide.width = in.get<int32_t>();
        if ((guide.height == 0) != (guide.width == 0) || std::min(guide.height, guide.width) < 0 || std::max(guide.height, guide.width) > kMaxSide)
            in.refuse("its guide is of an impossible size");
        const auto size = static_cast<size_t>(guide.height) * guide.width * 3;
        guide.pixels = {in.bytes(size), size};
    }
    const int64_t kept = kept_frames(frames, options_.context);
    if (in.remaining() / slot_bytes(table) < static_cast<size_t>(kept) + references) in.refuse("it ends too early");

    reserve_objects(table);
    objects_ = std::move(table);
    set_means(both);
    set_biases(biases);
    if (guide.height > 0) restore_guide(guide);
    reserve_frames(frames - kept, frames);
    for (int64_t frame = frames - kept; frame < frames; ++frame) read_slot(in, {frame});
    for (const ObjectTable::Reference &reference : objects_.references()) read_slot(in, {reference.frame, true});
    objects_changed();
}

}  // namespace vosrt
