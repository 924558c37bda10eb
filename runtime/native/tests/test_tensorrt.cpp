// What the TensorRT adapter does around TensorRT: sizes and profiles, buffers, refusals. TensorRT and CUDA are stand-ins
// (tests/tensorrt), so this says nothing of TensorRT itself.
//
//     test_tensorrt BUNDLE
#include <cstdio>
#include <fstream>
#include <string>
#include <vosrt_tensorrt.hpp>

#include "check.hpp"

namespace {

const char *const kPlan = "test_tensorrt.engine";

void write_plan(const std::string &text) { std::ofstream(kPlan, std::ios::binary) << text; }

// A square of colour on another one; frame t has it t cells further to the right.
struct Clip {
    explicit Clip(int pixels)
        : side(pixels), bgr(static_cast<size_t>(pixels * pixels * 3)), mask(static_cast<size_t>(pixels * pixels)) {
        draw(0);
    }
    void draw(int t) {
        for (int y = 0; y < side; ++y)
            for (int x = 0; x < side; ++x) {
                const bool inside = y >= 8 && y < 32 && x >= 8 + 8 * t && x < 32 + 8 * t;
                const size_t at = static_cast<size_t>(y * side + x);
                mask[at] = inside ? 1 : 0;
                bgr[at * 3] = inside ? 20 : 120;
                bgr[at * 3 + 1] = 110;
                bgr[at * 3 + 2] = inside ? 230 : 90;
            }
    }
    vosrt_image frame() const { return vosrt::bgr(bgr.data(), side, side); }
    vosrt_image marks() const { return vosrt::mask(mask.data(), side, side); }
    int side;
    std::vector<uint8_t> bgr, mask;
};

double overlap(const vosrt::Frame &frame, const Clip &clip) {
    int both = 0, either = 0;
    for (size_t i = 0; i < clip.mask.size(); ++i) {
        both += frame.labels.all()[i] && clip.mask[i];
        either += frame.labels.all()[i] || clip.mask[i];
    }
    return static_cast<double>(both) / either;
}

vosrt::Model model_of(const vosrt::Bundle &bundle, int32_t channels) {
    vosrt_model_options options = bundle.model_options();
    options.channels = channels;
    options.enlarge_percent = 100;  // the plan is for these very sizes
    return vosrt::Model::create(options, vosrt::TensorRt::open(bundle, kPlan).value()).value();
}

void frames_of_several_sizes_are_followed(const vosrt::Bundle &bundle) {
    const vosrt::Model model = model_of(bundle, 4);
    CHECK(model.describe().find("tensorrt, GPU 0") != std::string::npos);
    Clip small(64), large(96);
    auto first = vosrt::Stream::open(model).value(), second = vosrt::Stream::open(model).value();
    first.step(small.frame(), small.marks()).value();
    second.step(large.frame(), large.marks()).value();
    const int contexts = nvinfer1::IExecutionContext::made, buffers = allocations;
    for (int t = 1; t < 4; ++t) {  // in turns: each time the other profile
        small.draw(t);
        large.draw(t);
        CHECK(overlap(first.step(small.frame()).value(), small) > 0.7);
        CHECK(overlap(second.step(large.frame()).value(), large) > 0.7);
    }
    CHECK(nvinfer1::IExecutionContext::made == contexts && allocations == buffers);  // both sizes were ready

    for (const int side : {72, 80, 88}) {  // more sizes than are kept; the oldest one comes back
        const Clip other(side);
        vosrt::Stream::open(model).value().step(other.frame(), other.marks()).value();
    }
    CHECK(nvinfer1::IExecutionContext::made == contexts + 3);
    CHECK(overlap(first.step(small.frame()).value(), small) > 0.7);
    CHECK(nvinfer1::IExecutionContext::made == contexts + 4);
}

void failures_have_words(const vosrt::Bundle &bundle) {
    const vosrt::Model model = model_of(bundle, 4);
    auto stream = vosrt::Stream::open(model).value();
    Clip clip(64), huge(160);
    auto failed = stream.step(huge.frame(), huge.marks());
    CHECK(!failed && failed.error().text.find("was not built for frames of 160x160") != std::string::npos);
    clip.bgr[0] = 255;
    failed = stream.step(clip.frame(), clip.marks());
    CHECK(!failed && failed.error().text == "the first pixel is too blue");
    clip.draw(0);
    CHECK(overlap(stream.step(clip.frame(), clip.marks()).value(), clip) == 1.0);

    auto other = vosrt::Stream::open(model_of(bundle, 5)).value();
    failed = other.step(clip.frame(), clip.marks());
    CHECK(!failed && failed.error().text == "the engine's output has not the shape that the bundle says");
}

void other_files_are_refused(const vosrt::Bundle &bundle) {
    const auto text_of = [&](const std::string &file, int device) {
        const auto opened = vosrt::TensorRt::open(bundle, file, {device});
        CHECK(!opened);
        return opened.error().text;
    };
    CHECK(text_of("no such file", 0) == "cannot read the engine no such file");
    CHECK(text_of(kPlan, 1).find("CUDA: invalid device ordinal") != std::string::npos);
    write_plan("f16 plan");
    CHECK(text_of(kPlan, 0).find("no output embedding of type f32") != std::string::npos);
    write_plan("something else");
    CHECK(text_of(kPlan, 0).find("not a plan") != std::string::npos);
}

}  // namespace

int main(int count, char **arguments) {
    CHECK(count == 2);
    const auto bundle = vosrt::Bundle::open(arguments[1]).value();
    write_plan("f32 plan");
    frames_of_several_sizes_are_followed(bundle);
    failures_have_words(bundle);
    other_files_are_refused(bundle);
    std::remove(kPlan);
    return 0;
}
