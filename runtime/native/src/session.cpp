#include "session.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>

#include "isa.hpp"
#include "sha256.hpp"

namespace vosrt {
namespace {

static_assert(std::endian::native == std::endian::little, "sessions are little-endian");

constexpr char kMagic[8] = {'V', 'O', 'S', 'R', 'T', 'S', 'E', 'S'};
constexpr uint32_t kVersion = 2;  // 1 does not say how the grid is aligned: its corners are
constexpr size_t kHashAt = 24, kHeaderBytes = kHashAt + 32;
constexpr int64_t kMaxFrames = int64_t{1} << 40;
constexpr size_t kLine = 64;  // the bias of a bf16 key starts the last cache line of its row

std::array<uint8_t, 32> hash_of(std::span<const uint8_t> data) {
    Sha256 hash;
    hash.update(data);
    return hash.finish();
}

void write_all(SessionWriter &out, const Memory &memory, const vosrt_session &session) {
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
    for (const int32_t value : {options.height, options.width, options.channels, options.context, options.window})
        out.put(value);
    out.put(options.radius);
    out.put(options.top_k);
    out.put(options.temperature);
    for (const bool value : {options.pad_context, options.global_reference, options.yield_background})
        out.put(static_cast<int32_t>(value));
    out.put(static_cast<int32_t>(options.isa));
    out.put(static_cast<int32_t>(options.alignment == Alignment::half_pixel));
    memory.write(out);
    if (session.annotation != nullptr)
        out.bytes(session.annotation, static_cast<size_t>(session.frame_height) * session.frame_width);
}

void check(const vosrt_session &session) {
    within(session.frame_height, 0, kMaxSide, "session.frame_height");
    within(session.frame_width, 0, kMaxSide, "session.frame_width");
}

}  // namespace

size_t session_size(const Memory &memory, const vosrt_session &session) {
    if (memory.frames() == 0) invalid("saving needs a frame; push one first");
    check(session);
    SessionWriter counter;
    write_all(counter, memory, session);
    return counter.size();
}

void save_session(const Memory &memory, const vosrt_session &session, std::span<uint8_t> buffer) {
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
    if (options_.context == 0) options_.context = -1;
    options_.window = get<int32_t>();
    options_.radius = get<float>();
    options_.top_k = get<int32_t>();
    options_.temperature = get<float>();
    options_.drop_padding = get<int32_t>() == 0;
    options_.local_reference = get<int32_t>() == 0;
    options_.keep_background = get<int32_t>() == 0;
    options_.isa = get<int32_t>();
    if (version >= 2) options_.half_pixel = get<int32_t>();
}

MemoryOptions SessionReader::memory_options(const vosrt_load_options &wanted, int32_t device) const {
    if (options_.isa <= VOSRT_ISA_AUTO || options_.isa > VOSRT_ISA_CUDA) refuse("its instruction-set path is unknown");
    const auto saved = static_cast<vosrt_isa>(options_.isa);
    vosrt_memory_options options = options_;
    options.isa = wanted.isa;
    options.threads = wanted.threads;
    options.precision = isa_is_bf16(saved) ? VOSRT_PRECISION_BF16 : VOSRT_PRECISION_FP32;
    if (wanted.precision != VOSRT_PRECISION_AUTO && wanted.precision != options.precision)
        throw Error(VOSRT_UNSUPPORTED, std::string("the session holds ") + (isa_is_bf16(saved) ? "bf16" : "fp32") +
                                           " keys; it cannot continue in the other precision");
    options.device = device;
    const char *forced = std::getenv("VOSRT_ISA");
    if (options.isa == VOSRT_ISA_AUTO && (forced == nullptr || *forced == '\0') && isa_available(saved))
        options.isa = saved;
    within(wanted.threads, 0, 1024, "threads");
    within(wanted.isa, VOSRT_ISA_AUTO, VOSRT_ISA_CUDA, "isa");
    MemoryOptions out;
    try {
        out = resolve(options);
    } catch (const Error &error) {
        if (error.status() != VOSRT_INVALID_ARGUMENT || (forced != nullptr && *forced != '\0')) throw;
        refuse(error.what());
    }
    // A memory allocates all its slots at once; a few bytes must not ask for gigabytes.
    int64_t frames = 0;
    if (remaining() >= sizeof frames) std::memcpy(&frames, data_.data(), sizeof frames);
    const int64_t kept = std::min<int64_t>(frames, std::max(out.context, 1));
    const int64_t slot = static_cast<int64_t>(out.height) * out.width * out.channels * 2;
    if (kept < 1 || static_cast<int64_t>(remaining()) / slot < kept) refuse("it ends too early");
    return out;
}

void SessionReader::read_into(Memory &memory) {
    memory.read(*this);
    if (annotated_ && session_.frame_height > 0 && session_.frame_width > 0)
        session_.annotation = bytes(static_cast<size_t>(session_.frame_height) * session_.frame_width);
    if (remaining() != 0) refuse("it goes on after its end");
}

void SessionContents::write(SessionWriter &out) const {
    out.put(frames);
    out.put(static_cast<uint32_t>(ids.size()));
    out.put(static_cast<uint32_t>(references.size()));
    out.bytes(ids.data(), ids.size());
    out.bytes(mean.data(), mean.size() * sizeof(float));
    for (const Reference &reference : references) {
        out.put(reference.frame);
        out.put(static_cast<uint32_t>(reference.ids.size()));
        out.bytes(reference.ids.data(), reference.ids.size());
    }
}

SessionContents SessionContents::read_unsized(SessionReader &in, int32_t channels) {
    SessionContents contents;
    contents.frames = in.get<int64_t>();
    const auto objects = in.get<uint32_t>(), references = in.get<uint32_t>();
    if (contents.frames < 1 || contents.frames > kMaxFrames || objects > 255 || references > 256)
        in.refuse("its counters are impossible");
    const uint8_t *ids = in.bytes(objects);
    std::array<int32_t, 256> references_of{};  // of an id; every object has exactly one
    for (uint32_t i = 0; i < objects; ++i)
        if (ids[i] == 0 || (i > 0 && ids[i] <= ids[i - 1])) in.refuse("its object ids are out of order");
    contents.ids.assign(ids, ids + objects);
    const uint8_t *mean = in.bytes(static_cast<size_t>(channels) * sizeof(float));
    contents.mean.resize(channels);
    std::memcpy(contents.mean.data(), mean, contents.mean.size() * sizeof(float));

    for (uint32_t r = 0; r < references; ++r) {
        Reference reference{in.get<int64_t>(), {}};
        if (reference.frame < 0 || reference.frame >= contents.frames ||
            (r > 0 && reference.frame <= contents.references.back().frame))
            in.refuse("its references are out of order");
        const auto count = in.get<uint32_t>();
        if (count > 255 || (count == 0 && r > 0)) in.refuse("a reference has an impossible number of objects");
        const uint8_t *own = in.bytes(count);
        reference.ids.reserve(256);
        reference.ids.assign(own, own + count);
        for (const uint8_t id : reference.ids) {
            if (!std::binary_search(ids, ids + objects, id)) in.refuse("a reference names an object that is not tracked");
            ++references_of[id];
        }
        contents.references.push_back(std::move(reference));
    }
    for (uint32_t i = 0; i < objects; ++i)
        if (references_of[ids[i]] != 1) in.refuse("an object does not have exactly one reference");
    return contents;
}

#if !defined(VOSRT_CUDA_LIBRARY)

// ---- the memory's own part -----------------------------------------------------------------------------

size_t Memory::slot_bytes(size_t objects) const {
    const bool bf16 = isa_is_bf16(options_.isa);
    return cells() * (options_.channels * (bf16 ? 2 : sizeof(float)) + (bf16 ? sizeof(float) : 0) + (1 + objects) * sizeof(float));
}

void Memory::write_slot(SessionWriter &out, const Slot &slot) const {
    if (out.counting()) return out.skip(slot_bytes(object_ids().size()));
    const bool bf16 = isa_is_bf16(options_.isa);
    const size_t row = kernel_.row_bytes(options_.channels), stored = options_.channels * (bf16 ? 2 : sizeof(float));
    for (int32_t cell = 0; cell < cells(); ++cell) {
        const std::byte *key = slot.keys.data() + cell * row;
        out.bytes(key, stored);
        if (bf16) out.bytes(key + row - kLine, sizeof(float));
    }
    for (int32_t cell = 0; cell < cells(); ++cell)
        for (const int32_t channel : order_channels_) out.put(slot.soft[cell * capacity_ + channel]);
}

void Memory::read_slot(SessionReader &in, Slot &slot) const {
    const bool bf16 = isa_is_bf16(options_.isa);
    const size_t row = kernel_.row_bytes(options_.channels), stored = options_.channels * (bf16 ? 2 : sizeof(float));
    for (int32_t cell = 0; cell < cells(); ++cell) {
        std::byte *key = slot.keys.data() + cell * row;
        std::memcpy(key, in.bytes(stored), stored);
        if (bf16) std::memcpy(key + row - kLine, in.bytes(sizeof(float)), sizeof(float));
    }
    for (int32_t cell = 0; cell < cells(); ++cell)
        for (const int32_t channel : order_channels_) slot.soft[cell * capacity_ + channel] = in.get<float>();
}

void Memory::write(SessionWriter &out) const {
    const std::span<const uint8_t> ids = object_ids();
    SessionContents contents{frames_, {ids.begin(), ids.end()}, {mean_.begin(), mean_.end()}, {}};
    for (const Reference &reference : references_) contents.references.push_back({reference.frame, reference.ids});
    contents.write(out);
    for (int64_t frame = frames_ - contents.kept_frames(options_.context); frame < frames_; ++frame) write_slot(out, slot_of(frame));
    for (const Reference &reference : references_) write_slot(out, reference.slot);
}

void Memory::read(SessionReader &in) {
    SessionContents contents = SessionContents::read(in, options_, [&](size_t objects) { return slot_bytes(objects); });
    frames_ = contents.frames;
    std::copy(contents.mean.begin(), contents.mean.end(), mean_.begin());
    for (size_t i = 0; i < contents.ids.size(); ++i) channel_[contents.ids[i]] = static_cast<int32_t>(i + 1);
    order_channels_.reserve(257);
    order_ids_.reserve(257);
    update_order();
    grow_channels(contents.ids.size());
    set_mean_square();
    for (SessionContents::Reference &reference : contents.references)
        references_.push_back({reference.frame, std::move(reference.ids), make_slot(capacity_)});
    reserve_work(std::max<size_t>(references_.size(), 1));
    for (int64_t frame = frames_ - contents.kept_frames(options_.context); frame < frames_; ++frame) read_slot(in, slot_of(frame));
    for (Reference &reference : references_) read_slot(in, reference.slot);
}

#endif  // VOSRT_CUDA_LIBRARY

}  // namespace vosrt
