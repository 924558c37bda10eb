#include "stream.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "session.hpp"

namespace vosrt {
namespace {

class Stopwatch {
   public:
    double lap_ms() {
        const auto now = std::chrono::steady_clock::now();
        return 1e3 * std::chrono::duration<double>(now - std::exchange(start_, now)).count();
    }

   private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::string text_of(Size size) { return std::to_string(size.width) + " x " + std::to_string(size.height); }

// Which ids the mask holds, 0 included.
std::array<bool, 256> ids_in(const Picture &mask) {
    std::array<bool, 256> present{};
    for (int32_t y = 0; y < mask.height; ++y)
        for (int32_t x = 0; x < mask.width; ++x) present[mask.data[y * mask.stride + x]] = true;
    return present;
}

}  // namespace

Stream::Stream(std::shared_ptr<const Model> model, const vosrt_stream_options &options)
    : model_(std::move(model)), options_(options), memory_options_(model_->memory_options()) {
    if (options.size != 0) within(options.size, 8, 16384, "options.size");
    within(options.threads, 0, 1024, "options.threads");
    if (options.memory != nullptr) memory_options_ = read_struct(options.memory, "options.memory");
    memory_options_.struct_size = sizeof memory_options_;
    memory_options_.height = memory_options_.width = 1;
    memory_options_.channels = model_->channels();
    memory_options_.half_pixel = model_->memory_options().half_pixel;
    if (options.threads != 0) memory_options_.threads = options.threads;
    resolve(memory_options_);
}

void Stream::require_frame(const char *what) const {
    if (memory_ == nullptr) invalid(std::string(what) + " needs a frame; step first");
}

void Stream::check_mask(const Picture &mask, Size frame) const {
    if (mask.format != VOSRT_FORMAT_GRAY) invalid("mask.format is not VOSRT_FORMAT_GRAY; masks have one byte per pixel");
    const Size size{mask.height, mask.width};
    if (size != frame)
        throw Error(VOSRT_INVALID_MASK, "the mask has " + text_of(size) + " pixels, the frame " + text_of(frame) +
                                            "; give a mask of the frame's size");
    const auto present = ids_in(mask);
    if (std::none_of(present.begin() + 1, present.end(), [](bool is) { return is; }))
        throw Error(VOSRT_INVALID_MASK, "the mask marks no object; expected at least one pixel that is not 0");
}

// Everything that a frame of this size needs, allocated once.
void Stream::begin(Size frame, Size grid) {
    const size_t pixels = static_cast<size_t>(frame.height) * frame.width;
    labels_.resize(pixels);
    annotation_.resize(pixels);
    confidence_.resize(pixels);
    embedding_.reserve(static_cast<size_t>(grid.height) * grid.width * model_->channels() * sizeof(float));
    frame_ = frame;
    grid_ = grid;
}

void Stream::step(const Picture &frame, const std::optional<Picture> &mask) {
    Stopwatch watch;
    const Size size{frame.height, frame.width};
    const Size working = model_->working_size(size, options_.size), grid = model_->grid(working);
    if (memory_ != nullptr && (size != frame_ || grid != grid_))
        invalid("the frame size changed within the stream from " + text_of(frame_) + " (grid " + text_of(grid_) + ") to " +
                text_of(size) + " (grid " + text_of(grid) + "); open a stream per size");
    if (mask) check_mask(*mask, size);
    if (memory_ == nullptr) begin(size, grid);

    const uint8_t *bgr = frame.data;
    if (size != working || !is_dense_bgr(frame)) {
        working_.resize(static_cast<size_t>(working.height) * working.width * 3);
        scaler_.run(frame, working_.data(), working.height, working.width, int64_t{3} * working.width);
        bgr = working_.data();
    }
    const double resize_ms = watch.lap_ms();
    auto *embedding = reinterpret_cast<float *>(embedding_.data());
    model_->encode(bgr, working, embedding);
    const double encode_ms = watch.lap_ms();

    if (memory_ == nullptr) {
        memory_options_.height = grid.height;
        memory_options_.width = grid.width;
        memory_.reset(new vosrt_memory{Memory(resolve(memory_options_))});
    }
    memory_->memory.push(embedding);
    annotated_ = false;
    stale_ = true;
    result_.resize_ms = resize_ms;
    result_.encode_ms = encode_ms;
    result_.match_ms = watch.lap_ms();
    if (mask) annotate(*mask);
}

void Stream::add(const Picture &mask) {
    require_frame("adding objects");
    check_mask(mask, frame_);
    result_.resize_ms = result_.encode_ms = result_.match_ms = 0.0;
    annotate(mask);
}

void Stream::annotate(const Picture &mask) {
    memory_->memory.annotate(mask.data, mask.height, mask.width, mask.stride);
    if (!annotated_) std::fill(annotation_.begin(), annotation_.end(), uint8_t{0});
    const auto marked = ids_in(mask);
    for (int32_t y = 0; y < mask.height; ++y)
        for (int32_t x = 0; x < mask.width; ++x) {
            const uint8_t id = mask.data[y * mask.stride + x];
            uint8_t &kept = annotation_[static_cast<size_t>(y) * mask.width + x];
            if (id != 0)
                kept = id;
            else if (marked[kept])
                kept = 0;
        }
    annotated_ = stale_ = true;
}

void Stream::remove(int32_t object_id) {
    require_frame("removing an object");
    memory_->memory.remove(object_id);
    std::replace(annotation_.begin(), annotation_.end(), static_cast<uint8_t>(object_id), uint8_t{0});
    stale_ = true;
}

const vosrt_result &Stream::result() {
    require_frame("a result");
    if (stale_) label();
    const auto ids = memory_->memory.object_ids();
    result_.struct_size = sizeof result_;
    result_.height = frame_.height;
    result_.width = frame_.width;
    result_.object_count = static_cast<int32_t>(ids.size());
    result_.index = memory_->memory.frames() - 1;
    result_.labels = labels_.data();
    result_.confidence = confidence_.data();
    result_.object_ids = ids.data();
    result_.object_confidence = object_confidence_.data();
    return result_;
}

void Stream::finish_call() {
    const vosrt_result &done = result();
    if (options_.on_result != nullptr) options_.on_result(options_.user, &done);
}

void Stream::label() {
    Stopwatch watch;
    memory_->memory.labels(frame_.height, frame_.width, labels_.data(), confidence_.data());
    if (annotated_) overrule();
    measure_confidence();
    stale_ = false;
    result_.labels_ms = watch.lap_ms();
}

// An annotated frame shows its annotation: inside, the marked ids; outside, none of them.
void Stream::overrule() {
    std::array<bool, 256> marked{};
    for (const uint8_t id : annotation_) marked[id] = true;
    marked[0] = false;
    for (size_t i = 0; i < labels_.size(); ++i) {
        if (annotation_[i] == 0 && !marked[labels_[i]]) continue;
        labels_[i] = annotation_[i];
        confidence_[i] = 1.0f;
    }
}

void Stream::measure_confidence() {
    std::array<int64_t, 256> pixels{};
    std::array<double, 256> total{};
    for (size_t i = 0; i < labels_.size(); ++i) {
        ++pixels[labels_[i]];
        total[labels_[i]] += static_cast<double>(confidence_[i]);
    }
    const auto ids = memory_->memory.object_ids();
    for (size_t i = 0; i < ids.size(); ++i)
        object_confidence_[i] = static_cast<float>(total[ids[i]] / static_cast<double>(std::max<int64_t>(pixels[ids[i]], 1)));
}

void Stream::copy_labels(uint8_t *labels, int64_t stride) const {
    require_frame("copying labels");
    if (stale_) invalid("the labels were not computed yet; ask for vosrt_stream_result first");
    check_image(frame_.height, frame_.width, stride, 1);
    for (int32_t y = 0; y < frame_.height; ++y)
        std::copy_n(labels_.data() + static_cast<size_t>(y) * frame_.width, frame_.width, labels + y * stride);
}

const Memory &Stream::saved_memory() const {
    require_frame("saving");
    return memory_->memory;
}

vosrt_session Stream::session() const {
    vosrt_session out{};
    out.struct_size = sizeof out;
    out.frame_height = frame_.height;
    out.frame_width = frame_.width;
    out.annotation = annotated_ ? annotation_.data() : nullptr;
    std::copy(model_->graph_sha256().begin(), model_->graph_sha256().end(), out.model);
    return out;
}

void Stream::load(std::span<const uint8_t> data) {
    SessionReader reader(data);
    const vosrt_load_options wanted{sizeof wanted, memory_options_.precision, memory_options_.isa, memory_options_.threads};
    auto loaded = std::unique_ptr<vosrt_memory>(new vosrt_memory{Memory(reader.memory_options(wanted, memory_options_.device))});
    reader.read_into(loaded->memory);
    const vosrt_session &session = reader.session();
    const auto known = [](const auto &hash) { return std::any_of(std::begin(hash), std::end(hash), [](auto b) { return b != 0; }); };
    const auto &mine = model_->graph_sha256();
    if (reader.channels() != model_->channels() ||
        (known(mine) && known(session.model) && !std::equal(mine.begin(), mine.end(), session.model)))
        SessionReader::refuse("it was saved with another network; load the model that it was saved with");
    const bool half_pixel = loaded->memory.options().alignment == Alignment::half_pixel;
    if (half_pixel != (memory_options_.half_pixel != 0))
        SessionReader::refuse(half_pixel ? "its corners are not aligned, those of this model are; load the bundle that it was saved with"
                                         : "its corners are aligned, those of this model are not; load the bundle that it was saved with");
    if (session.frame_height == 0 || session.frame_width == 0) SessionReader::refuse("it holds a memory without a stream");
    const MemoryOptions &options = loaded->memory.options();
    begin({session.frame_height, session.frame_width}, {options.height, options.width});
    annotated_ = session.annotation != nullptr;
    if (annotated_) std::copy_n(session.annotation, annotation_.size(), annotation_.begin());
    memory_ = std::move(loaded);
    stale_ = true;
}

}  // namespace vosrt
