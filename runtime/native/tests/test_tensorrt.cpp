// What the TensorRT adapter does around TensorRT: sizes and profiles, buffers, refusals. TensorRT and CUDA are stand-ins
// (tests/tensorrt), so this says nothing of TensorRT itself.
//
//     test_tensorrt BUNDLE REFINED_BUNDLE
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <vector>
#include <vosrt_tensorrt.hpp>

#include "check.hpp"

namespace {

const char *const kPlan = "test_tensorrt.engine";

void write_plan(const std::string &text, const char *file = kPlan) { std::ofstream(file, std::ios::binary) << text; }

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
    CHECK(!failed && failed.error().text.find("was not built for frames of 1x160x160x3;") != std::string::npos);
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

// ---- mask networks ---------------------------------------------------------------------------------------

constexpr int kValues = 8;
const char *const kMaskPlan = "test_tensorrt_masks.engine", *const kDrawPlan = "test_tensorrt_decoder.engine";

// The networks of tests/tensorrt in host memory.
class OnHost : public vosrt::Networks<std::vector<float>> {
   public:
    explicit OnHost(const vosrt_bundle_info &info) : Networks(info) {}
    std::string name() const override { return "host"; }

   private:
    std::string run(const Call &call) override {
        const auto in = [&](size_t n) { return static_cast<const float *>(call.inputs[n].data); };
        const auto map = [&](size_t n) { return call.maps[n].second->data(); };
        const auto *bgr = static_cast<const uint8_t *>(call.inputs[0].data);
        const std::vector<int64_t> &given = call.inputs[0].shape, &wanted = call.output.shape;
        auto *out = static_cast<float *>(call.output.data);
        if (call.network == vosrt::kEncoder) {
            float *maps[2] = {};
            for (int n = 0; call.keep != nullptr && n < 2; ++n) {
                const int64_t side = n == 0 ? 8 : 4, cells = ((given[1] + side - 1) / side) * ((given[2] + side - 1) / side);
                std::vector<float> &kept = (*call.keep)[n == 0 ? "res3" : "res2"];
                kept.resize(static_cast<size_t>(fake::kMaps * cells));
                maps[n] = kept.data();
            }
            fake::encode(given[1], given[2], wanted[3], bgr, out, maps[0], maps[1]);
        } else if (call.network == vosrt::kMaskEncoder) {
            fake::encode_masks({wanted[0], given[1], given[2], wanted[3]}, bgr, in(1), map(0), out);
        } else {
            fake::decode({given[0], given[1], given[2], given[3]}, wanted[1], wanted[2], in(0), in(1), map(0), map(1), out);
        }
        return "";
    }
};

vosrt::Model refining(const vosrt::Bundle &bundle, std::unique_ptr<vosrt::Engine> engine) {
    vosrt_model_options options = bundle.model_options();
    options.channels = 4;
    options.value_channels = kValues;
    options.enlarge_percent = 100;
    return vosrt::Model::create(options, std::move(engine)).value();
}

vosrt::TensorRtOptions mask_plans() {
    vosrt::TensorRtOptions options;
    options.mask_encoder = kMaskPlan, options.decoder = kDrawPlan;
    return options;
}

// Labels of some frames; objects 1 to `objects` are strips of the clip's square.
std::vector<uint8_t> refined_labels(const vosrt::Model &model, int side, int objects, int32_t refine = VOSRT_REFINE_DEFAULT) {
    vosrt_stream_options options = vosrt::stream_options();
    options.refine = refine;
    auto stream = vosrt::Stream::open(model, &options).value();
    Clip clip(side);
    std::vector<uint8_t> marks = clip.mask, all;
    for (size_t i = 0; i < marks.size(); ++i)
        if (marks[i] != 0) marks[i] = static_cast<uint8_t>(1 + (i % static_cast<size_t>(side) / 8 - 1) * static_cast<size_t>(objects) / 3);
    for (int t = 0; t < 4; ++t) {
        clip.draw(t);
        const auto frame = t == 0 ? stream.step(clip.frame(), vosrt::mask(marks.data(), side, side)) : stream.step(clip.frame());
        if (!frame) return {frame.error().text.begin(), frame.error().text.end()};
        const auto labels = vosrt::Expected<vosrt::Frame>(frame).value().labels.all();
        all.insert(all.end(), labels.begin(), labels.end());
    }
    return all;
}

void masks_are_refined_as_on_the_host(const vosrt::Bundle &bundle) {
    const vosrt::Model host = refining(bundle, std::make_unique<OnHost>(bundle.info()));
    const vosrt::Model model = refining(bundle, vosrt::TensorRt::open(bundle, kPlan, mask_plans()).value());
    for (const int side : {64, 72, 57})
        for (const int objects : {1, 3}) CHECK(refined_labels(model, side, objects) == refined_labels(host, side, objects));
    CHECK(refined_labels(model, 64, 3) != refined_labels(model, 64, 3, VOSRT_REFINE_OFF));  // the networks do something
    const int contexts = nvinfer1::IExecutionContext::made, buffers = allocations;
    CHECK(refined_labels(model, 64, 3) == refined_labels(host, 64, 3));
    CHECK(nvinfer1::IExecutionContext::made == contexts && allocations == buffers);  // maps of frames are used again
}

void mask_networks_are_refused_in_words(const vosrt::Bundle &bundle, const vosrt::Bundle &without) {
    const auto text_of = [](const vosrt::Bundle &which, const vosrt::TensorRtOptions &options) {
        const auto opened = vosrt::TensorRt::open(which, kPlan, options);
        CHECK(!opened);
        return opened.error().text;
    };
    vosrt::TensorRtOptions options = mask_plans();
    CHECK(text_of(without, options).find("has no mask networks") != std::string::npos);
    options.decoder.clear();
    CHECK(text_of(bundle, options).find("belong together") != std::string::npos);
    options = mask_plans();
    std::swap(options.decoder, options.mask_encoder);
    CHECK(text_of(bundle, options).find("it has no input context of type f32") != std::string::npos);

    vosrt::TensorRtOptions alone;
    const vosrt::Model plain = refining(bundle, vosrt::TensorRt::open(bundle, kPlan, alone).value());
    CHECK(!refined_labels(plain, 64, 1).empty());  // such streams follow objects by the encoder
    const vosrt::Model model = refining(bundle, vosrt::TensorRt::open(bundle, kPlan, mask_plans()).value());
    auto stream = vosrt::Stream::open(model).value();
    Clip clip(64);
    std::vector<uint8_t> marks(clip.mask.size(), 0);
    for (int object = 0; object < 4; ++object)
        for (int y = 8; y < 56; ++y) std::fill_n(marks.begin() + y * 64 + 16 * object, 16, static_cast<uint8_t>(1 + object));
    const auto failed = stream.step(clip.frame(), vosrt::mask(marks.data(), 64, 64));
    CHECK(!failed && failed.error().text == "the engine was not built for masks of 4x64x64; build it for them with vos-export engine --sizes and --objects");
}

}  // namespace

int main(int count, char **arguments) {
    CHECK(count == 3);
    const auto bundle = vosrt::Bundle::open(arguments[1]).value();
    write_plan("f32 plan");
    frames_of_several_sizes_are_followed(bundle);
    failures_have_words(bundle);
    other_files_are_refused(bundle);
    const auto refined = vosrt::Bundle::open(arguments[2]).value();
    write_plan("f32 plan");
    write_plan("f32 mask" + std::to_string(kValues), kMaskPlan);
    write_plan("f32 draw" + std::to_string(kValues), kDrawPlan);
    masks_are_refined_as_on_the_host(refined);
    mask_networks_are_refused_in_words(refined, bundle);
    for (const char *file : {kPlan, kMaskPlan, kDrawPlan}) std::remove(file);
    return 0;
}
