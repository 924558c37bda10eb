// The arrays of a stream's refinement on the memory's GPU. Networks are given arrays there, and queue their work behind the memory's.
#include <map>
#include <utility>
#include <vector>

#include "memory_cuda.hpp"
#include "refiner.hpp"

namespace vosrt {
namespace {

class DeviceArrays final : public RefineArrays {
   public:
    explicit DeviceArrays(const RefineTask &task) : RefineArrays(task), memory_(static_cast<CudaMemory &>(task.memory)) {}
    ~DeviceArrays() override { memory_.show({}); }  // its planes go

    void follow(const FrameView &frame) override { view_ = frame; }
    void set_ids(std::span<const uint8_t> ids) override { ids_.assign(ids.begin(), ids.end()); }
    void draw() override { memory_.draw(masks()); }
    std::vector<uint8_t> mark(const Picture &mask) override { return memory_.mark(masks(), mask); }
    void drop(size_t channel) override;
    void encode() override;
    void decode(bool from_readout) override;
    void give_back() override { memory_.keep(view_of(masks())); }
    void show() override { memory_.show(view_of(masks())); }
    void labels(Size size, uint8_t *labels, float *confidence) override { memory_.labels(size.height, size.width, labels, confidence); }
    void hold(uint8_t id) override {
        held_.insert_or_assign(id, cuda::Buffer(memory_.options().device, (1 + memory_.options().context) * value_bytes(), "the values of an object"));
    }
    void forget(uint8_t id) override { held_.erase(id); }
    void keep(uint8_t id, size_t index, int32_t slot) override {
        memory_.queue().copy(held_.at(id).data() + slot * value_bytes(), values_.data() + index * value_bytes(), value_bytes());
    }
    void read(std::span<const ValueBlock> blocks) override;

   private:
    static cuda::SoftView view_of(const cuda::Planes &planes) { return cuda::view_of_planes(planes.size, planes.values); }
    size_t value_bytes() const { return sizeof(float) * value_size(); }
    template <class T>
    T *room(cuda::Buffer &held, size_t bytes) {
        if (held.bytes() < bytes) held = cuda::Buffer(memory_.options().device, bytes, "refinement");
        return held.data<T>();
    }
    cuda::Planes masks() {
        return {{view_.size.height, view_.size.width}, room<float>(masks_, (1 + objects()) * pixels() * sizeof(float))};
    }

    CudaMemory &memory_;
    cuda::Buffer masks_, readout_, values_, logits_;
    std::map<uint8_t, cuda::Buffer> held_;
};

// By way of the host: objects are seldom removed.
void DeviceArrays::drop(size_t channel) {
    std::vector<float> soft((1 + objects()) * pixels());
    cuda::Queue &queue = memory_.queue();
    queue.select();
    queue.download(soft.data(), masks_.data(), soft.size() * sizeof(float));
    queue.wait();
    const auto gone = soft.begin() + static_cast<ptrdiff_t>(channel * pixels());
    for (size_t pixel = 0; pixel < pixels(); ++pixel) soft[pixel] += gone[static_cast<ptrdiff_t>(pixel)];
    soft.erase(gone, gone + static_cast<ptrdiff_t>(pixels()));
    queue.upload(masks_.data(), soft.data(), soft.size() * sizeof(float));
    queue.wait();
}

void DeviceArrays::encode() {
    run_encoder(masks().values + pixels(), room<float>(values_, objects() * value_bytes()));
    memory_.queue().select();  // networks may have left another GPU current
}

void DeviceArrays::decode(bool from_readout) {
    const Size size = quarter();
    auto *logits = room<float>(logits_, objects() * size.height * size.width * sizeof(float));
    run_decoder(readout_.data<float>(), (from_readout ? readout_ : values_).data<float>(), logits);
    memory_.refine(cuda::view_of_planes({size.height, size.width}, logits), options_.residual, masks());
}

void DeviceArrays::read(std::span<const ValueBlock> blocks) {
    auto *readout = room<std::byte>(readout_, objects() * value_bytes());
    const int32_t context = memory_.options().context;
    for (size_t number = 0; number < blocks.size(); ++number)
        for (const uint8_t id : blocks[number].ids) {
            const auto index = static_cast<size_t>(std::find(ids_.begin(), ids_.end(), id) - ids_.begin());
            const std::byte *values = held_.at(id).data();
            memory_.values(static_cast<int32_t>(number), reinterpret_cast<const float *>(values),
                           reinterpret_cast<const float *>(values + value_bytes()), std::max(1, context), options_.value_channels,
                           reinterpret_cast<float *>(readout + index * value_bytes()));
        }
}

}  // namespace

std::unique_ptr<RefineArrays> make_device_arrays(const RefineTask &task) { return std::make_unique<DeviceArrays>(task); }

}  // namespace vosrt
