// vosrt.hpp compiles without exceptions and RTTI; every template that a host uses is instantiated.
#include <vosrt.hpp>

int32_t objects_of(const char *path, const uint8_t *pixels, int32_t height, int32_t width, std::unique_ptr<vosrt::Engine> engine) {
    auto bundle = vosrt::Bundle::open(path);
    if (!bundle) return -bundle.error().status;
    auto model = vosrt::Model::create(*bundle.operator->(), std::move(engine));
    if (!model) return -model.error().status;
    auto stream = vosrt::Stream::open(model.value());
    if (!stream) return -stream.error().status;
    return static_cast<int32_t>(stream->step(vosrt::bgr(pixels, height, width)).value().object_ids.size());
}
