// One video's memory: what a frame, an annotation and a removal mean, and what a session keeps. The arrays themselves (keys and soft
// masks of the recent frames and of the references) and the search among them belong to CpuMemory (memory_cpu.hpp) or, in
// libvosrt_cuda, to CudaMemory (cuda/memory_cuda.hpp).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cpu/match.hpp"
#include "object_table.hpp"
#include "presence.hpp"
#include "resample.hpp"
#include "vosrt.h"

namespace vosrt {

struct MemoryOptions {
    int32_t height, width, channels;
    int32_t context;
    float radius;
    int32_t top_k;
    float temperature;
    bool pad_context, yield_background;
    float centring, sharpness, object_bias;
    int32_t guided;
    int32_t calibration;
    float motion;
    int32_t parts;             // of a cell, to a side
    PresenceOptions presence;  // which streams read
    Alignment alignment;
    vosrt_isa isa;  // resolved, never AUTO
    int32_t threads;
    int32_t device;  // of libvosrt_cuda

    // Whether propagated masks are remembered otherwise than they were read.
    bool alters_masks() const { return sharpness != 1.0f || object_bias != 0.0f || calibration != 0; }
    // Whether a frame that is `age` frames younger than a reference is held against it (calibration.hpp).
    bool calibrates(int64_t age) const { return calibration != 0 && age > 0 && age % calibration == 0; }
    int32_t cells() const { return height * width; }
    // The grid of the parts of cells, which soft masks lie on.
    int32_t mask_height() const { return height * parts; }
    int32_t mask_width() const { return width * parts; }
    int32_t mask_cells() const { return cells() * parts * parts; }
    // The first part of a cell; those of a row lie beside each other.
    int32_t first_part(int32_t cell) const { return (cell / width * parts * width + cell % width) * parts; }
};

vosrt_memory_options default_memory_options();
vosrt_model_options default_model_options();
// Throws Error where a value is out of range, or no path fits.
MemoryOptions resolve(const vosrt_memory_options &options);

// The window of a query: how many columns to either side belong to it, by row distance from 0 to its reach.
std::vector<int32_t> window_half_widths(const MemoryOptions &options);

class SessionReader;
class SessionWriter;

class Memory {
   public:
    static std::unique_ptr<Memory> create(const MemoryOptions &options);
    // Continues a session: takes no more memory than its bytes call for, and the rest when frames come.
    static std::unique_ptr<Memory> load(const MemoryOptions &options, SessionReader &in);
    virtual ~Memory() = default;

    void push(const float *embedding);
    void annotate(const uint8_t *mask, int32_t height, int32_t width, int64_t stride);
    void remove(int32_t object_id);
    void guide(const uint8_t *bgr, int32_t height, int32_t width, int64_t stride);
    virtual void labels(int32_t height, int32_t width, uint8_t *labels, float *confidence) = 0;
    void soft_masks(float *masks);
    void set_soft_masks(const float *masks);
    void top_k(float *similarity, int32_t *frame, int32_t *cell);

    // Another number whenever the labels of the newest frame may be others.
    int64_t revision() const { return revision_; }
    int32_t top_k_references() const { return static_cast<int32_t>(matched_.size()); }
    const ObjectTable &objects() const { return objects_; }
    const MemoryOptions &options() const { return options_; }
    int32_t cells() const { return options_.cells(); }
    int32_t mask_cells() const { return options_.mask_cells(); }
    virtual int32_t threads() const = 0;
    virtual bool has_threads() const = 0;  // that a fork leaves behind
    virtual int64_t bytes() const = 0;
    // Of a bounded search: elements of a head, and the share of bounded keys that were multiplied all the same.
    virtual int32_t head() const { return 0; }
    virtual float survivors() const { return 1.0f; }

    // Everything that later frames depend on, see session.cpp.
    void write(SessionWriter &out);

   protected:
    // What a reference's context was when the newest frame was matched; lets candidates be traced back.
    struct Matched {
        int64_t frame;
        int32_t recent, copies;
    };
    // The arrays of a recent frame, or of the reference that was annotated at a frame.
    struct Place {
        int64_t frame;
        bool reference = false;
    };
    // The same in host memory. `bias` is the fp32 part of bf16 keys, nullptr for fp32 keys.
    struct HostSlot {
        std::byte *keys = nullptr;
        size_t key_stride = 0;  // bytes from cell to cell
        std::byte *bias = nullptr;
        size_t bias_stride = 0;
        float *soft = nullptr;  // [mask_cells][capacity()]
    };
    enum class Access {
        read,
        write,
        edit
    };  // which of them brings arrays to the host and back
    enum class Part {
        soft,
        whole
    };
    // Means that keys and centring are relative to, f32 [channels] each; `centre` is empty where nothing is removed.
    struct Means {
        std::vector<float> keys, centre;
    };
    // Of every channel, the logarithm of the factor that its object has in what is remembered.
    using Biases = std::array<float, 256>;
    struct GuidePicture {
        int32_t height = 0, width = 0;
        std::span<const uint8_t> pixels;  // u8 [height, width, 3]
    };

    explicit Memory(const MemoryOptions &options) : options_(options) {}

    void require_frame(const char *what) const;
    // Makes room for one more frame. What can run out of memory is here, begin_frame cannot fail.
    void prepare_frame();
    // Counts a frame, and says which contexts its matches have.
    void begin_frame();
    // The work of the newest frame failed: what is read next belongs to the one before, whose matches are `before`.
    void drop_frame(std::vector<Matched> before);
    const std::vector<Matched> &matched() const { return matched_; }  // oldest reference first

    const MemoryOptions options_;
    int64_t revision_ = 0;

   private:
    virtual void take(const float *embedding) = 0;  // calls begin_frame
    // Room for frames `first` to `end`, the latter excluded.
    virtual void reserve_frames(int64_t first, int64_t end) = 0;
    // Room for the channels and references of `table`, which is not in force yet.
    virtual void reserve_objects(const ObjectTable &table) = 0;
    // Room for a search with so many references.
    virtual void reserve_work(size_t references) = 0;
    virtual void with_slot(Place place, Part part, Access access, const std::function<void(const HostSlot &)> &use) = 0;
    virtual size_t capacity() const = 0;                        // channels that soft masks have room for
    virtual void keep_reference() = 0;                          // copies the newest frame to its reference
    virtual void release(int32_t channel) = 0;                  // turns a channel into background, in all slots
    virtual void objects_changed() = 0;                         // drops slots of references that went
    virtual const Candidate *neighbours(size_t reference) = 0;  // [cells][top_k] on the host, of a matched reference
    virtual Means means() const = 0;
    virtual void set_means(const Means &means) = 0;
    virtual Biases biases() const = 0;
    virtual void set_biases(const Biases &biases) = 0;
    virtual void set_guide(const uint8_t *bgr, int32_t height, int32_t width, int64_t stride) = 0;
    virtual GuidePicture guide_picture() = 0;  // empty where the newest frame has none
    virtual void restore_guide(const GuidePicture &picture) = 0;

    void read(SessionReader &in);
    size_t slot_bytes(const ObjectTable &table) const;  // in a session
    void write_slot(SessionWriter &out, Place place);
    void read_slot(SessionReader &in, Place place);

    ObjectTable objects_;
    std::vector<Matched> matched_;
};

// The memory of this library, without room for frames.
std::unique_ptr<Memory> open_memory(const MemoryOptions &options);

}  // namespace vosrt
