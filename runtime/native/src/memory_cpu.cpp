#include "memory_cpu.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "calibration.hpp"
#include "error.hpp"
#include "isa.hpp"
#include "ranges.hpp"
#include "refiner.hpp"

namespace vosrt {
namespace {

constexpr size_t kLine = 64;        // the bias of a bf16 key starts the last cache line of its row
constexpr int32_t kRunCells = 256;  // cells of one job, where cells are independent

}  // namespace

std::unique_ptr<Memory> open_memory(const MemoryOptions &options) { return std::make_unique<CpuMemory>(options); }

std::unique_ptr<RefineArrays> make_device_arrays(const RefineTask &) {
    throw Error(VOSRT_UNSUPPORTED, "the engine's mask networks are on a GPU, memories of libvosrt are not; use libvosrt_cuda");
}

CpuMemory::CpuMemory(const MemoryOptions &options)
    : Memory(options),
      kernel_(*match_kernel(options.isa)),
      pool_(options.threads),
      search_(kernel_, options.channels, pool_.size()),
      half_width_(window_half_widths(options)),
      slots_(options.context + 1),
      mean_(options.channels),
      guide_(options.guided) {
    build_window();
    biases_.fill(options_.object_bias);
    if (options_.calibration != 0) {
        looks_back_.resize(cells());
        went_to_.resize(cells());
    }
    if (options_.motion != 0.0f) {
        steps_.resize(static_cast<size_t>(motion::kAges) * cells());
        background_steps_.resize(steps_.size());
        object_steps_.resize(pool_.size(), std::vector<motion::Sums<float>>(cells()));
        column_steps_.resize(pool_.size(), std::vector<motion::Sums<double>>(options_.width));
    }
    if (options_.centring != 0.0f) centred_.resize(static_cast<size_t>(cells()) * options_.channels);

    patch_columns_ = (options_.width + kernel_.patch_width - 1) / kernel_.patch_width;
    patch_rows_ = (options_.height + kernel_.patch_height - 1) / kernel_.patch_height;
    // Patches of a group share keys in cache; smaller groups where threads would run short of work.
    constexpr int32_t kGroupsPerThread = 6;
    while (group_rows_ * group_columns_ > 1 &&
           patch_columns_ * patch_rows_ < kGroupsPerThread * pool_.size() * group_columns_ * group_rows_)
        (group_rows_ >= group_columns_ ? group_rows_ : group_columns_) /= 2;
    workspace_.resize(pool_.size());
    sums_.assign(pool_.size(), std::vector<float>(capacity_ * options_.parts * options_.parts));
    recent_keys_.reserve(options_.context);
}

// Which lanes of a patch attend to a cell near it, as bits.
void CpuMemory::build_window() {
    const auto reach = static_cast<int32_t>(half_width_.size()) - 1;
    const int32_t columns = kernel_.patch_width + 2 * reach, rows = kernel_.patch_height + 2 * reach;
    window_.assign(static_cast<size_t>(columns) * rows, 0);
    for (int32_t row = 0; row < rows; ++row)
        for (int32_t column = 0; column < columns; ++column)
            for (int32_t lane = 0; lane < kernel_.patch_width * kernel_.patch_height; ++lane) {
                const int32_t dy = std::abs(row - reach - lane / kernel_.patch_width);
                const int32_t dx = std::abs(column - reach - lane % kernel_.patch_width);
                if (dy <= reach && dx <= half_width_[dy]) window_[row * columns + column] |= 1u << lane;
            }
}

CpuMemory::Slot CpuMemory::make_slot(size_t capacity) const {
    Slot slot;
    slot.keys.reserve(search_.keys_bytes(cells()));
    slot.soft.assign(mask_cells() * capacity, 0.0f);
    return slot;
}

int64_t CpuMemory::bytes() const {
    const auto of = [](const Slot &slot) { return slot.keys.bytes() + slot.soft.capacity() * sizeof(float); };
    size_t total = search_.bytes() + candidates_.capacity() * sizeof(Candidate) + window_.size() * sizeof(uint32_t) + looks_back_.size() + went_to_.size() * sizeof(Candidate) + centred_.size() * sizeof(float) + guide_.bytes();
    total += steps_.size() * sizeof(motion::Step) + (background_steps_.size() + object_steps_.size() * cells()) * sizeof(motion::Sums<float>) + evidence_.capacity() * sizeof(float);
    for (const Slot &slot : slots_) total += of(slot);
    for (const ReferenceSlot &reference : references_) total += of(reference.slot);
    for (const AlignedBuffer &buffer : workspace_) total += buffer.bytes();
    return static_cast<int64_t>(total);
}

void CpuMemory::reserve_frames(int64_t first, int64_t end) {
    for (int64_t frame = first; frame < end; ++frame)
        if (Slot &slot = slot_of(frame); slot.soft.empty()) slot = make_slot(capacity_);
}

namespace {

// The mean over all cells, [channels]; 0 in channels where it is not finite.
std::vector<float> mean_of(const float *embedding, int32_t cells, int32_t channels) {
    std::vector<double> sum(channels, 0.0);
    for (int32_t cell = 0; cell < cells; ++cell)
        for (int32_t c = 0; c < channels; ++c) sum[c] += embedding[static_cast<size_t>(cell) * channels + c];
    std::vector<float> means(channels);
    for (int32_t c = 0; c < channels; ++c) {
        const auto mean = static_cast<float>(sum[c] / cells);
        means[c] = std::isfinite(mean) ? mean : 0.0f;
    }
    return means;
}

// normalise(e - share * centre) of one cell. The norm is summed up in double, so that every core rounds to the same embedding
// whatever its order of summation; the lanes let compilers use vectors.
void centre_cell(const float *in, const float *centre, int32_t channels, float share, float *out) {
    constexpr int32_t kLanes = 8;
    double squares[kLanes] = {};
    int32_t c = 0;
    for (; c + kLanes <= channels; c += kLanes)
        for (int32_t lane = 0; lane < kLanes; ++lane) {
            const float rest = in[c + lane] - share * centre[c + lane];
            out[c + lane] = rest;
            squares[lane] += static_cast<double>(rest) * rest;
        }
    for (; c < channels; ++c) {
        out[c] = in[c] - share * centre[c];
        squares[0] += static_cast<double>(out[c]) * out[c];
    }
    double total = 0.0;
    for (const double square : squares) total += square;
    const auto norm = static_cast<float>(std::sqrt(total));
    if (norm == 0.0f) return;  // nothing but the mean: zeros
    for (c = 0; c < channels; ++c) out[c] /= norm;
}

// p_m^sharpness * factor_m, divided by the sum over m; relative to the largest one, so that none overflows.
void sharpen_cell(float *soft, const std::vector<int32_t> &channels, float sharpness, const float *factors) {
    float largest = 0.0f, total = 0.0f;
    for (const int32_t channel : channels) largest = std::max(largest, soft[channel]);
    if (largest == 0.0f) return;
    for (const int32_t channel : channels) {
        float &value = soft[channel];
        value = std::pow(value / largest, sharpness) * factors[channel];
        total += value;
    }
    for (const int32_t channel : channels) soft[channel] /= total;
}

}  // namespace

// The embedding as it is matched.
const float *CpuMemory::centred(const float *embedding) {
    if (options_.centring == 0.0f) return embedding;
    if (centre_.empty()) centre_ = mean_of(embedding, cells(), options_.channels);
    pool_.run((cells() + kRunCells - 1) / kRunCells, [&](int32_t job, int32_t) {
        for (int32_t cell = job * kRunCells; cell < std::min((job + 1) * kRunCells, cells()); ++cell) {
            const size_t at = static_cast<size_t>(cell) * options_.channels;
            centre_cell(embedding + at, centre_.data(), options_.channels, options_.centring, centred_.data() + at);
        }
    });
    return centred_.data();
}

// What is remembered of a propagated frame is not what is shown of it: it is changed when the next one comes, so that until then
// labels, annotations and sessions see it as it was read. A reference stays as it was annotated.
void CpuMemory::settle_newest() {
    if (!options_.alters_masks()) return;
    for (const ObjectTable::Reference &reference : objects().references()) calibrate(reference);
    if (objects().references().back().frame == objects().newest()) return;
    Biases factors;
    std::transform(biases_.begin(), biases_.end(), factors.begin(), [](float bias) { return std::exp(bias); });
    factors[0] = 1.0f;
    Slot &slot = newest();
    pool_.run((mask_cells() + kRunCells - 1) / kRunCells, [&](int32_t job, int32_t) {
        for (int32_t cell = job * kRunCells; cell < std::min((job + 1) * kRunCells, mask_cells()); ++cell)
            sharpen_cell(slot.soft.data() + cell * capacity_, objects().order_channels(), options_.sharpness, factors.data());
    });
}

// Sets the biases of a reference's objects by the newest frame; see calibration.hpp.
void CpuMemory::calibrate(const ObjectTable::Reference &reference) {
    namespace rule = calibration;
    const int64_t age = objects().newest() - reference.frame;
    if (age == 0)
        for (const uint8_t id : reference.ids) biases_[objects().channel(id)] = options_.object_bias;
    if (!options_.calibrates(age) || reference.ids.empty()) return;
    const Slot &truth = reference_slot(reference.frame);
    std::fill(looks_back_.begin(), looks_back_.end(), 0);
    for (int32_t cell = 0; cell < cells(); ++cell) {
        if (std::none_of(reference.ids.begin(), reference.ids.end(), [&](uint8_t id) { return mean_soft(truth, cell, objects().channel(id)) > rule::kLeastSoft; })) continue;
        const int32_t y = cell / options_.width, x = cell % options_.width;
        const int32_t left = std::max(0, x - rule::kMargin), right = std::min(options_.width, x + rule::kMargin + 1);
        for (int32_t row = std::max(0, y - rule::kMargin); row < std::min(options_.height, y + rule::kMargin + 1); ++row)
            std::fill_n(looks_back_.data() + row * options_.width + left, right - left, uint8_t{1});
    }
    look_back(truth.keys.data());
    for (const uint8_t id : reference.ids) {
        const int32_t channel = objects().channel(id);
        rule::Evidence evidence;
        for (int32_t cell = 0; cell < cells(); ++cell) {
            if (looks_back_[cell] && went_to_[cell].cell >= 0)
                evidence.add(mean_soft(truth, cell, channel), mean_soft(newest(), went_to_[cell].cell, channel));
        }
        biases_[channel] = options_.object_bias + rule::correction(std::log(evidence.odds()));
    }
}

// The most similar cell of the newest frame for the cells that look back, and some beside them; `keys` are theirs.
void CpuMemory::look_back(const std::byte *keys) {
    const MatchReference now{newest().keys.data(), 0, 0};
    const MatchTask task{.height = options_.height,
                         .width = options_.width,
                         .channels = options_.channels,
                         .query = keys,
                         .recent = nullptr,
                         .context = 0,
                         .references = &now,
                         .reference_count = 1,
                         .reach = static_cast<int32_t>(half_width_.size()) - 1,
                         .half_width = half_width_.data(),
                         .window = window_.data(),
                         .top_k = 1,
                         .mean_square = mean_square_,
                         .heads_at = search_.heads_at(cells()),
                         .bytes_at = search_.bytes_at(cells()),
                         .scale = search_.scale(),
                         .result = went_to_.data()};
    MatchTask bounded = task;
    bounded.head = search_.head();
    for_each_group([&](const PatchGroup &group, const CellBox &box, int32_t job, int32_t worker) {
        for (int32_t y = box.top; y < box.bottom; ++y) {
            const uint8_t *row = looks_back_.data() + y * options_.width;
            if (std::find(row + box.left, row + box.right, uint8_t{1}) == row + box.right) continue;
            SearchCounts not_counted;
            return kernel_.match(search_.bounds(job, worker) ? bounded : task, group, workspace_[worker].data(), not_counted);
        }
    });
}

void CpuMemory::set_means(const Means &means) {
    mean_ = means.keys;
    centre_ = means.centre;
    set_mean_square();
}

void CpuMemory::set_mean_square() {
    double square = 0.0;
    for (const float mean : mean_) square += static_cast<double>(mean) * mean;
    mean_square_ = static_cast<float>(square);
}

void CpuMemory::take(const float *embedding) {
    embedding = centred(embedding);
    if (objects().frames() == 0) {
        // Means are fixed by the first frame: keys of all frames must be relative to the same one.
        mean_ = mean_of(embedding, cells(), options_.channels);
        set_mean_square();
    }
    if (!objects().references().empty()) {
        settle_newest();
        if (search_.learn(references_.front().slot.keys.data(), cells()) || search_.adapt()) make_all_heads();
    }
    begin_frame();
    guide_.clear();
    Slot &slot = newest();
    const size_t row = kernel_.row_bytes(options_.channels);
    pool_.run((cells() + kRunCells - 1) / kRunCells, [&](int32_t job, int32_t worker) {
        const int32_t from = job * kRunCells, count = std::min(kRunCells, cells() - from);
        kernel_.store(embedding + static_cast<size_t>(from) * options_.channels, count, options_.channels, mean_.data(),
                      slot.keys.data() + from * row);
        if (search_.ready()) search_.make_heads(slot.keys.data(), cells(), from, count, workspace_[worker].data());
    });
    if (objects().references().empty()) {
        std::fill(slot.soft.begin(), slot.soft.end(), 0.0f);
        for (int32_t cell = 0; cell < mask_cells(); ++cell) slot.soft[cell * capacity_] = 1.0f;
        return;
    }
    match_newest();
}

// Of every frame that a context may hold.
void CpuMemory::make_all_heads() {
    std::vector<std::byte *> keys;
    const int64_t frames = objects().frames();
    const int64_t oldest = std::max(references_.front().frame, frames - static_cast<int64_t>(slots_.size()));
    for (int64_t frame = oldest; frame < frames; ++frame)
        if (!slot_of(frame).soft.empty()) keys.push_back(slot_of(frame).keys.data());
    for (ReferenceSlot &reference : references_) keys.push_back(reference.slot.keys.data());
    const int32_t runs = (cells() + kRunCells - 1) / kRunCells;
    pool_.run(runs * static_cast<int32_t>(keys.size()), [&](int32_t job, int32_t worker) {
        const int32_t from = job % runs * kRunCells;
        search_.make_heads(keys[job / runs], cells(), from, std::min(kRunCells, cells() - from), workspace_[worker].data());
    });
}

void CpuMemory::match_newest() {
    const int64_t now = objects().newest();
    const auto count = static_cast<int32_t>(matched().size());
    match_references_.clear();
    // The youngest reference needs the fewest recent frames: matching goes from youngest to oldest.
    for (int32_t i = count - 1; i >= 0; --i)
        match_references_.push_back({references_[i].slot.keys.data(), matched()[i].recent, matched()[i].copies});
    recent_keys_.clear();
    for (int32_t age = 1; age <= matched().front().recent; ++age) recent_keys_.push_back(slot_of(now - age).keys.data());

    const MatchTask task{.height = options_.height,
                         .width = options_.width,
                         .channels = options_.channels,
                         .query = newest().keys.data(),
                         .recent = recent_keys_.data(),
                         .context = options_.context,
                         .references = match_references_.data(),
                         .reference_count = count,
                         .reach = static_cast<int32_t>(half_width_.size()) - 1,
                         .half_width = half_width_.data(),
                         .window = window_.data(),
                         .top_k = options_.top_k,
                         .mean_square = mean_square_,
                         .heads_at = search_.heads_at(cells()),
                         .bytes_at = search_.bytes_at(cells()),
                         .scale = search_.scale(),
                         .result = candidates_.data()};
    MatchTask bounded = task;
    bounded.head = search_.head();
    search_.start_frame();
    Slot &slot = newest();
    for_each_group([&](const PatchGroup &group, const CellBox &box, int32_t job, int32_t worker) {
        kernel_.match(search_.bounds(job, worker) ? bounded : task, group, workspace_[worker].data(), search_.counts(worker));
        for (int32_t y = box.top; y < box.bottom; ++y)
            for (int32_t x = box.left; x < box.right; ++x) {
                propagate(y * options_.width + x, sums_[worker].data(), slot.soft.data());
            }
    });
    if (options_.motion != 0.0f && objects().order_channels().size() > 1) move_together();
}

// What moves as an object does is the object's, see motion.hpp.
void CpuMemory::move_together() {
    const std::vector<int32_t> &channels = objects().order_channels();
    const int32_t runs = (cells() + kRunCells - 1) / kRunCells;
    const auto for_each_cell = [&](const auto &body) {
        pool_.run(runs, [&](int32_t job, int32_t) {
            for (int32_t cell = job * kRunCells; cell < std::min((job + 1) * kRunCells, cells()); ++cell) body(cell);
        });
    };
    for_each_cell([&](int32_t cell) { find_step(cell); });
    pool_.run(motion::kAges, [&](int32_t age, int32_t worker) {
        sum_steps(age, 0, worker, background_steps_.data() + static_cast<size_t>(age) * cells());
    });
    pool_.run(static_cast<int32_t>(channels.size()) - 1, [&](int32_t object, int32_t worker) {
        std::vector<motion::Sums<float>> &mine = object_steps_[worker];
        float *evidence = evidence_.data() + static_cast<size_t>(object) * cells();
        std::fill_n(evidence, cells(), 0.0f);
        for (int32_t age = 0; age < motion::kAges; ++age) {
            sum_steps(age, channels[object + 1], worker, mine.data());
            for (int32_t cell = 0; cell < cells(); ++cell) {
                const motion::Step &step = steps_[static_cast<size_t>(age) * cells() + cell];
                const motion::Sums<float> &rest = background_steps_[static_cast<size_t>(age) * cells() + cell];
                const float nearer = motion::in_noise(std::sqrt(rest.squared_distance(step))) - motion::in_noise(std::sqrt(mine[cell].squared_distance(step)));
                evidence[cell] += step.weight * rest.support() * mine[cell].support() * nearer;
            }
        }
    });
    for_each_cell([&](int32_t cell) { weigh_motion(cell); });
}

// Where a cell was in each of the last frames, by the candidates of the first reference's context that lie within its window.
void CpuMemory::find_step(int32_t cell) {
    const Candidate *list = candidates_.data() + ((matched().size() - 1) * cells() + cell) * options_.top_k;
    const Matched &context = matched().front();
    const int64_t now = objects().newest();
    const auto reach = static_cast<int32_t>(half_width_.size()) - 1;
    motion::Step found[motion::kAges];
    float total = 0.0f;
    for (int32_t i = 0; i < options_.top_k && list[i].cell >= 0; ++i) {
        const float weight = std::exp((list[i].similarity - list[0].similarity) / motion::kTemperature);
        total += weight;
        const int64_t age = list[i].position <= context.copies ? now - context.frame : options_.context + 1 - list[i].position;
        const int32_t dy = list[i].cell / options_.width - cell / options_.width, dx = list[i].cell % options_.width - cell % options_.width;
        if (age <= motion::kAges && std::abs(dy) <= reach && std::abs(dx) <= half_width_[std::abs(dy)])
            found[age - 1].add(weight, static_cast<float>(dy), static_cast<float>(dx));
    }
    for (int32_t age = 0; age < motion::kAges; ++age) {
        if (total > 0.0f) found[age].finish(total);
        steps_[static_cast<size_t>(age) * cells() + cell] = found[age];
    }
}

// Adds up the steps of a channel's cells over the window of every cell. Sums slide, in double, so that what was added goes again.
void CpuMemory::sum_steps(int32_t age, int32_t channel, int32_t worker, motion::Sums<float> *out) {
    const int32_t height = options_.height, width = options_.width;
    const motion::Step *steps = steps_.data() + static_cast<size_t>(age) * cells();
    const Slot &slot = newest();
    std::vector<motion::Sums<double>> &columns = column_steps_[worker];
    std::fill(columns.begin(), columns.end(), motion::Sums<double>{});
    const auto add_row = [&](int32_t y, float sign) {
        if (y < 0 || y >= height) return;
        for (int32_t x = 0; x < width; ++x) columns[x].add(steps[y * width + x], mean_soft(slot, y * width + x, channel), sign);
    };
    for (int32_t y = 0; y < motion::kReach; ++y) add_row(y, 1.0f);
    for (int32_t y = 0; y < height; ++y) {
        add_row(y + motion::kReach, 1.0f);
        add_row(y - motion::kReach - 1, -1.0f);
        motion::Sums<double> sum;
        for (int32_t x = 0; x < std::min(motion::kReach, width); ++x) sum.add(columns[x]);
        for (int32_t x = 0; x < width; ++x) {
            if (x + motion::kReach < width) sum.add(columns[x + motion::kReach]);
            if (x > motion::kReach) sum.add(columns[x - motion::kReach - 1], -1.0f);
            out[y * width + x] = {static_cast<float>(sum.weight), static_cast<float>(sum.dy), static_cast<float>(sum.dx)};
        }
    }
}

// The masks of a cell's parts times e^(motion * evidence), divided by their sum; relative to the largest one, so that none overflows.
void CpuMemory::weigh_motion(int32_t cell) {
    const std::vector<int32_t> &channels = objects().order_channels();
    float weight = motion::kDoubt;
    for (int32_t age = 0; age < motion::kAges; ++age) weight += steps_[static_cast<size_t>(age) * cells() + cell].weight;
    for (size_t n = 1; n < channels.size(); ++n) {
        float &factor = evidence_[(n - 1) * cells() + cell];
        factor = std::exp(options_.motion * factor / weight);
    }
    for_each_part(cell, [&](int32_t part) {
        float *soft = newest().soft.data() + part * capacity_;
        float largest = 0.0f, total = 0.0f;
        for (const int32_t channel : channels) largest = std::max(largest, soft[channel]);
        if (largest == 0.0f) return;
        for (size_t n = 0; n < channels.size(); ++n) {
            float &value = soft[channels[n]];
            value /= largest;
            if (n > 0) value *= evidence_[(n - 1) * cells() + cell];
            total += value;
        }
        for (const int32_t channel : channels) soft[channel] /= total;
    });
}

// Calls body(part) for the parts of a cell, row by row.
template <class Body>
void CpuMemory::for_each_part(int32_t cell, const Body &body) const {
    const int32_t first = options_.first_part(cell);
    for (int32_t y = 0; y < options_.parts; ++y)
        for (int32_t x = 0; x < options_.parts; ++x) body(first + y * options_.mask_width() + x);
}

// The mean over the parts of a cell.
float CpuMemory::mean_soft(const Slot &slot, int32_t cell, int32_t channel) const {
    float sum = 0.0f;
    for_each_part(cell, [&](int32_t part) { sum += slot.soft[part * capacity_ + channel]; });
    return sum / static_cast<float>(options_.parts * options_.parts);
}

// Calls body(group, box of its cells, job, worker) for all patches of a frame, on all threads.
template <class Body>
void CpuMemory::for_each_group(const Body &body) {
    const int32_t across = (patch_columns_ + group_columns_ - 1) / group_columns_;
    const int32_t down = (patch_rows_ + group_rows_ - 1) / group_rows_;
    pool_.run(across * down, [&](int32_t job, int32_t worker) {
        PatchGroup group{job % across * group_columns_, job / across * group_rows_, group_columns_, group_rows_};
        group.columns = std::min(group.columns, patch_columns_ - group.left);
        group.rows = std::min(group.rows, patch_rows_ - group.top);
        const CellBox box{group.left * kernel_.patch_width, group.top * kernel_.patch_height,
                          std::min((group.left + group.columns) * kernel_.patch_width, options_.width),
                          std::min((group.top + group.rows) * kernel_.patch_height, options_.height)};
        body(group, box, job, worker);
    });
}

// Every reference's context gives the channels annotated there, the first one background too. The first reference may
// show as background what was marked only later, so background yields to later objects.
void CpuMemory::propagate(int32_t cell, float *sums, float *frame) const {
    constexpr auto kMostParts = static_cast<int32_t>(ranges::parts.highest * ranges::parts.highest);
    float later[kMostParts] = {};
    for (size_t r = matched().size(); r-- > 0;) {
        const bool first = r + 1 == matched().size();
        if (first || !reads_like_next(r, cell)) read_out(r, cell, sums);
        int32_t n = 0;
        for_each_part(cell, [&](int32_t part) {
            const float *of_part = sums + n * capacity_;
            float *soft = frame + part * capacity_;
            if (first) std::fill_n(soft, capacity_, 0.0f);
            for (const uint8_t id : objects().references()[r].ids) {
                const int32_t channel = objects().channel(id);
                soft[channel] = of_part[channel];
                if (r > 0) later[n] += of_part[channel];
            }
            if (r == 0) soft[0] = of_part[0];
            if (r == 0 && options_.yield_background) soft[0] *= std::max(0.0f, 1.0f - later[n]);
            ++n;
        });
    }
}

// Whether the lists of references r and r + 1 are equal and name recent frames only, which the two contexts share.
bool CpuMemory::reads_like_next(size_t r, int32_t cell) const {
    const size_t stride = static_cast<size_t>(cells()) * options_.top_k;
    const Candidate *next = candidates_.data() + (matched().size() - 2 - r) * stride + static_cast<size_t>(cell) * options_.top_k;
    const Candidate *list = next + stride;
    if (std::memcmp(list, next, options_.top_k * sizeof(Candidate)) != 0) return false;
    const int32_t copies = std::max(matched()[r].copies, matched()[r + 1].copies);
    return std::all_of(list, list + options_.top_k, [&](const Candidate &each) { return each.position > copies; });
}

// Softmax of the kept similarities, then the weighted sum of their soft masks (Araslanov et al. 2021, eq. 1 and 2 of
// appendix C): a part reads the same part of each neighbour. `sums`, [parts * parts][capacity_], receives every channel; a context
// contributes only those annotated in its reference.
void CpuMemory::read_out(size_t reference, int32_t cell, float *sums) const {
    const Candidate *list =
        candidates_.data() + ((matched().size() - 1 - reference) * cells() + cell) * options_.top_k;
    const Matched &context = matched()[reference];
    const Slot &slot = references_[reference].slot;
    const size_t row = options_.parts * capacity_;  // parts of a row lie beside each other
    std::fill_n(sums, options_.parts * row, 0.0f);
    float weights[64];
    float total = 0.0f;
    int32_t count = 0;
    for (; count < options_.top_k && list[count].cell >= 0; ++count) {
        weights[count] = std::exp((list[count].similarity - list[0].similarity) / options_.temperature);
        total += weights[count];
    }
    const int64_t now = objects().newest();
    for (int32_t i = 0; i < count; ++i) {
        const int32_t position = list[i].position;
        const Slot &from = position <= context.copies ? slot : slot_of(now - (options_.context + 1 - position));
        const float *soft = from.soft.data() + options_.first_part(list[i].cell) * capacity_;
        const float weight = weights[i] / total;
        for (int32_t y = 0; y < options_.parts; ++y)
            for (size_t c = 0; c < row; ++c) sums[y * row + c] += weight * soft[y * options_.width * row + c];
    }
}

void CpuMemory::reserve_work(size_t references) {
    candidates_.resize(std::max(candidates_.size(), references * cells() * options_.top_k));
    match_references_.reserve(references);
    for (AlignedBuffer &buffer : workspace_)
        buffer.reserve(kernel_.workspace_bytes(options_.channels, options_.top_k, static_cast<int32_t>(references),
                                               group_columns_ * group_rows_));
}

void CpuMemory::reserve_objects(const ObjectTable &table) {
    if (options_.motion != 0.0f) evidence_.resize(std::max(evidence_.size(), table.order_channels().size() * cells()));
    grow_channels(table.order_channels().size());
    references_.reserve(table.references().size() + 1);
    for (const ObjectTable::Reference &reference : table.references())
        if (references_.empty() || references_.back().frame < reference.frame)
            references_.push_back({reference.frame, make_slot(capacity_)});
}

void CpuMemory::grow_channels(size_t channels) {
    size_t capacity = capacity_;
    while (capacity < channels) capacity *= 2;
    if (capacity == capacity_) return;
    // Everything is allocated before anything changes.
    std::vector<std::vector<float>> wider;
    for_each_slot([&](Slot &slot) {
        std::vector<float> soft(mask_cells() * capacity, 0.0f);
        for (int32_t cell = 0; cell < mask_cells(); ++cell)
            std::copy_n(slot.soft.data() + cell * capacity_, capacity_, soft.data() + cell * capacity);
        wider.push_back(std::move(soft));
    });
    std::vector<std::vector<float>> sums(sums_.size(), std::vector<float>(capacity * options_.parts * options_.parts));
    size_t i = 0;
    for_each_slot([&](Slot &slot) { slot.soft = std::move(wider[i++]); });
    sums_ = std::move(sums);
    capacity_ = capacity;
}

template <class Body>
void CpuMemory::for_each_slot(const Body &body) {
    for (Slot &slot : slots_)
        if (!slot.soft.empty()) body(slot);
    for (ReferenceSlot &reference : references_) body(reference.slot);
}

void CpuMemory::with_slot(Place place, Part, Access, const std::function<void(const HostSlot &)> &use) {
    Slot &slot = place.reference ? reference_slot(place.frame) : slot_of(place.frame);
    const size_t row = kernel_.row_bytes(options_.channels);
    std::byte *keys = slot.keys.data();
    use({keys, row, isa_is_bf16(options_.isa) ? keys + row - kLine : nullptr, row, slot.soft.data()});
}

CpuMemory::Slot &CpuMemory::reference_slot(int64_t frame) {
    return std::find_if(references_.begin(), references_.end(), [&](const ReferenceSlot &each) { return each.frame == frame; })->slot;
}

void CpuMemory::keep_reference() {
    Slot &slot = reference_slot(objects().newest());
    std::memcpy(slot.keys.data(), newest().keys.data(), slot.keys.bytes());
    std::copy(newest().soft.begin(), newest().soft.end(), slot.soft.begin());
}

void CpuMemory::release(int32_t channel) {
    for_each_slot([&](Slot &slot) {
        for (int32_t cell = 0; cell < mask_cells(); ++cell) {
            float *soft = slot.soft.data() + cell * capacity_;
            soft[0] += soft[channel];
            soft[channel] = 0.0f;
        }
    });
}

void CpuMemory::objects_changed() {
    std::erase_if(references_, [&](const ReferenceSlot &each) { return !objects().has_reference(each.frame); });
}

const Candidate *CpuMemory::neighbours(size_t reference) {
    return candidates_.data() + (matched().size() - 1 - reference) * cells() * options_.top_k;
}

Memory::GuidePicture CpuMemory::guide_picture() {
    if (!guide_.ready()) return {};
    return {guide_.height(), guide_.width(), guide_.pixels()};
}

void CpuMemory::labels(int32_t height, int32_t width, uint8_t *labels, float *confidence) {
    require_frame("labelling");
    LabelTask task{.height = options_.mask_height(),
                   .width = options_.mask_width(),
                   .soft = newest().soft.data(),
                   .stride = static_cast<int64_t>(capacity_),
                   .channels = objects().order_channels().data(),
                   .ids = objects().order_ids().data(),
                   .count = static_cast<int32_t>(objects().order_ids().size()),
                   .out_height = height,
                   .out_width = width,
                   .rows = &rows_,
                   .columns = &columns_,
                   .labels = labels,
                   .confidence = confidence};
    Alignment alignment = options_.alignment;
    if (guide_.ready() && task.count > 1) {
        const GridSoft masks{task.height, task.width, task.soft, task.stride, objects().order_channels(), alignment};
        guided_channels_.resize(task.count);
        std::iota(guided_channels_.begin(), guided_channels_.end(), 0);
        task.soft = guide_.run(masks, pool_);
        task.stride = task.count;
        task.channels = guided_channels_.data();
        task.height = guide_.height();
        task.width = guide_.width();
        alignment = Alignment::half_pixel;
    }
    rows_.set(task.height, height, alignment);
    columns_.set(task.width, width, alignment);
    pool_.run(task.height, [&](int32_t row, int32_t) { label_rows(task, row); });
}

}  // namespace vosrt
