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

std::string text_of(Size size) { return std::to_string(size.width) + " x " + std::to_string(size.height); }

}  // namespace

Model::Model(const vosrt_model_options &options, const vosrt_engine &engine) : options_(options), engine_(engine) {
    const auto or_default = [](int32_t value, int32_t other) { return value == 0 ? other : value; };
    options_.stride = within(or_default(options.stride, 8), 1, 64, "options.stride");
    options_.min_side = within(or_default(options.min_side, 16), 1, 16384, "options.min_side");
    options_.max_side = within(or_default(options.max_side, 4096), options_.min_side, 16384, "options.max_side");
    if (options.size != 0) within(options.size, 8, 16384, "options.size");
    if (engine.encode == nullptr) invalid("engine.encode is NULL");
    if (options.memory != nullptr) memory_ = read_struct(options.memory, "options.memory");
    memory_.struct_size = sizeof memory_;
    memory_.height = memory_.width = 1;
    memory_.channels = options.channels;
    const MemoryOptions resolved = resolve(memory_);
    std::copy_n(options.graph_sha256, graph_sha256_.size(), graph_sha256_.begin());
    description_ = "{\"model\": " + quoted(options.name ? options.name : "") +
                   ", \"engine\": " + quoted(engine.name ? engine.name : "host") +
                   ", \"channels\": " + std::to_string(options.channels) + ", \"core\": " + quoted(VOSRT_VERSION) +
                   ", \"isa\": " + quoted(vosrt_isa_name(resolved.isa)) +
                   ", \"threads\": " + std::to_string(resolved.threads) + "}";
    options_.memory = nullptr;  // the caller's; copied above
    options_.name = nullptr;
    engine_.name = nullptr;
}

Model::~Model() {
    if (engine_.destroy != nullptr) engine_.destroy(engine_.user);
}

// Integer arithmetic, halves rounded up, as vosrt.encoder.working_size has it.
Size Model::working_size(Size frame, int32_t short_side) const {
    const bool upscale = short_side != 0;
    const int64_t wanted = upscale ? short_side : options_.size;
    const int64_t shorter = std::min(frame.height, frame.width), longer = std::max(frame.height, frame.width);
    Size working = frame;
    if (wanted != 0 && wanted != shorter && (wanted < shorter || upscale)) {
        const int64_t scaled = (2 * longer * wanted + shorter) / (2 * shorter);
        const auto a = static_cast<int32_t>(wanted), b = static_cast<int32_t>(std::min<int64_t>(scaled, INT32_MAX));
        working = frame.height <= frame.width ? Size{a, b} : Size{b, a};
    }
    if (memory_.half_pixel != 0) working = {whole_cells(working.height), whole_cells(working.width)};
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

void Model::encode(const uint8_t *bgr, Size working, float *embedding) const {
    const Size cells = grid(working);
    const vosrt_encode_task task{sizeof(vosrt_encode_task), working.height, working.width, cells.height, cells.width,
                                 options_.channels, bgr, embedding};
    std::unique_lock<std::mutex> lock(serial_, std::defer_lock);
    if (engine_.flags & VOSRT_ENGINE_SERIAL) lock.lock();
    vosrt_set_last_error("");
    if (engine_.encode(engine_.user, &task) != VOSRT_OK) {
        const std::string words = vosrt_last_error();
        throw Error(VOSRT_ENGINE_FAILED, words.empty() ? "the engine failed and did not say why" : words);
    }
}

}  // namespace vosrt
