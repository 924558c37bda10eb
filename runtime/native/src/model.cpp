#include <algorithm>

#include "stream.hpp"

namespace vosrt {
namespace {

std::string quoted(const std::string &text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return out + "\"";
}

constexpr int32_t kMaxRounds = 4;

}  // namespace

void check_size(int32_t size) {
    if (size != VOSRT_SIZE_DEFAULT && size != VOSRT_SIZE_NATIVE) within(size, 8, 16384, "options.size");
}

Model::Model(const vosrt_model_options &options, const vosrt_engine &engine) : options_(options), engine_(engine) {
    within(options.stride, 1, 64, "options.stride");
    within(options.min_side, 1, 16384, "options.min_side");
    within(options.max_side, options.min_side, 16384, "options.max_side");
    if (options.size != VOSRT_SIZE_NATIVE) within(options.size, 8, 16384, "options.size");
    within(options.enlarge_percent, 100, 400, "options.enlarge_percent");
    if ((engine.encode_masks == nullptr) != (engine.decode_masks == nullptr))
        invalid("engine.encode_masks or engine.decode_masks is NULL; give both mask networks or none");
    if (options_.value_channels != 0) {
        within(options_.value_channels, 1, 65536, "options.value_channels");
        within(options_.rounds, 0, kMaxRounds, "options.rounds");
    }
    if (options.memory != nullptr) memory_ = read_struct(options.memory, "options.memory", memory_);
    memory_.struct_size = sizeof memory_;
    memory_.height = memory_.width = 1;
    memory_.channels = options.channels;
    const MemoryOptions resolved = resolve(memory_);
    std::copy_n(options.graph_sha256, graph_sha256_.size(), graph_sha256_.begin());
    description_ = "{\"model\": " + quoted(options.name ? options.name : "") +
                   ", \"engine\": " + quoted(engine.name ? engine.name : "host") +
                   ", \"channels\": " + std::to_string(options.channels) +
                   ", \"size\": " + std::to_string(options.size) + ", \"core\": " + quoted(VOSRT_VERSION) +
                   ", \"isa\": " + quoted(vosrt_isa_name(resolved.isa)) +
                   ", \"threads\": " + std::to_string(resolved.threads) +
                   ", \"refines\": " + (refinement(VOSRT_REFINE_DEFAULT) ? "true" : "false") + "}";
    options_.memory = nullptr;  // the caller's; copied above
    options_.name = nullptr;
    engine_.name = nullptr;
}

Model::~Model() {
    // In a process that forked off, ending an engine would wait for threads that stayed behind.
    if (engine_.destroy != nullptr && !(has_threads() && forks_ != fork_count())) engine_.destroy(engine_.user);
}

// Integer arithmetic, halves rounded up, as vosrt.encoder.working_size has it.
Size Model::working_size(Size frame, int32_t short_side) const {
    const int64_t shorter = std::min(frame.height, frame.width), longer = std::max(frame.height, frame.width);
    const int64_t most = (shorter * options_.enlarge_percent + 50) / 100;
    const int64_t wanted = short_side != VOSRT_SIZE_DEFAULT ? short_side : std::min<int64_t>(options_.size, most);
    Size working = frame;
    if (wanted != VOSRT_SIZE_NATIVE && wanted != shorter) {
        const int64_t scaled = (2 * longer * wanted + shorter) / (2 * shorter);
        const auto a = static_cast<int32_t>(wanted), b = static_cast<int32_t>(std::min<int64_t>(scaled, INT32_MAX));
        working = frame.height <= frame.width ? Size{a, b} : Size{b, a};
    }
    if (memory_.align_corners == 0) working = {whole_cells(working.height), whole_cells(working.width)};
    if (std::min(working.height, working.width) < options_.min_side ||
        std::max(working.height, working.width) > options_.max_side)
        invalid("a frame of " + text_of(frame) + " pixels would be encoded at " + text_of(working) +
                "; this model takes sides of " + std::to_string(options_.min_side) + " to " +
                std::to_string(options_.max_side) + " pixels; choose another size");
    return working;
}

int32_t Model::whole_cells(int32_t side) const {
    const int64_t cells = (int64_t{2} * side + options_.stride) / (int64_t{2} * options_.stride);
    return static_cast<int32_t>(std::clamp<int64_t>(cells, 1, INT32_MAX / options_.stride) * options_.stride);
}

Size Model::grid(Size working) const {
    return {(working.height + options_.stride - 1) / options_.stride,
            (working.width + options_.stride - 1) / options_.stride};
}

std::optional<RefineOptions> Model::refinement(int32_t rounds) const {
    const bool can = options_.value_channels != 0 && engine_.encode_masks != nullptr;
    if (rounds == VOSRT_REFINE_OFF || (rounds == VOSRT_REFINE_DEFAULT && !can)) return std::nullopt;
    within(rounds, VOSRT_REFINE_READOUT, kMaxRounds, "options.refine");
    if (!can)
        throw Error(VOSRT_UNSUPPORTED, std::string("options.refine is ") + std::to_string(rounds) +
                                           (options_.value_channels == 0 ? ", but this model has no mask networks"
                                                                         : ", but the engine does not run the mask networks"));
    if (memory_.align_corners == 1) throw Error(VOSRT_UNSUPPORTED, "this encoder aligns corners; refined masks do not fit; set refine off");
    if (rounds == VOSRT_REFINE_READOUT)
        rounds = 0;
    else if (rounds == VOSRT_REFINE_DEFAULT)
        rounds = options_.rounds;
    return RefineOptions{options_.value_channels, rounds, options_.residual != 0, options_.feedback != 0};
}

template <class Task>
void Model::run(vosrt_status (*network)(void *, const Task *), const Task &task) const {
    std::unique_lock<std::mutex> lock(serial_, std::defer_lock);
    if (engine_.flags & VOSRT_ENGINE_SERIAL) lock.lock();
    vosrt_set_last_error("");
    if (network(engine_.user, &task) != VOSRT_OK) {
        const std::string words = vosrt_last_error();
        throw Error(VOSRT_ENGINE_FAILED, words.empty() ? "the engine failed and did not say why" : words);
    }
}

void Model::encode(const uint8_t *bgr, Size working, float *embedding, void **features) const {
    const Size cells = grid(working);
    run(engine_.encode, vosrt_encode_task{sizeof(vosrt_encode_task), working.height, working.width, cells.height, cells.width,
                                          options_.channels, bgr, embedding, features});
}

void Model::encode_masks(const vosrt_encode_masks_task &task) const { run(engine_.encode_masks, task); }

void Model::decode_masks(const vosrt_decode_masks_task &task) const { run(engine_.decode_masks, task); }

void Model::release(void *features) const {
    // As in the destructor: features may need threads that a fork left behind.
    if (engine_.release != nullptr && !(has_threads() && forks_ != fork_count())) engine_.release(engine_.user, features);
}

}  // namespace vosrt
