// Streams as a host drives them, through vosrt.hpp: many frames in constant memory, many threads on one model, sessions.
#include <atomic>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vosrt.hpp>

#include "check.hpp"
#include "counting_allocator.hpp"

namespace {

constexpr int kHeight = 32, kWidth = 48, kCell = 8, kChannels = 4;
#if defined(VOSRT_TEST_SANITIZED)
constexpr int kFrames = 2000;
#else
constexpr int kFrames = 100000;
#endif

// Mean colours per cell, of unit length.
class Colours : public vosrt::Engine {
   public:
    std::string name() const override { return "mean colours"; }
    std::string encode(const vosrt_encode_task &task) override {
        if (fail) throw std::runtime_error("no colours today");
        for (int cell = 0; cell < task.grid_height * task.grid_width; ++cell) {
            float *out = task.embedding + static_cast<size_t>(cell) * kChannels, square = 1.0f;
            std::memset(out, 0, kChannels * sizeof *out);
            const int top = cell / task.grid_width * kCell, left = cell % task.grid_width * kCell;
            for (int y = top; y < std::min(top + kCell, task.height); ++y)
                for (int x = left; x < std::min(left + kCell, task.width); ++x)
                    for (int c = 0; c < 3; ++c) out[c] += task.bgr[(static_cast<size_t>(y) * task.width + x) * 3 + c];
            out[3] = 1.0f;
            for (int c = 0; c < 3; ++c) square += out[c] * out[c];
            for (int c = 0; c < kChannels; ++c) out[c] /= std::sqrt(square);
        }
        return {};
    }
    static inline std::atomic<bool> fail{false};
};

struct Picture {
    std::vector<uint8_t> bgr = std::vector<uint8_t>(kHeight * kWidth * 3), mask = std::vector<uint8_t>(kHeight * kWidth);

    void draw(int t, int object) {
        const int left = 4 + t % 16, top = 8;
        for (int y = 0; y < kHeight; ++y)
            for (int x = 0; x < kWidth; ++x) {
                const bool inside = y >= top && y < top + 16 && x >= left && x < left + 16;
                mask[y * kWidth + x] = static_cast<uint8_t>(inside ? object : 0);
                uint8_t *pixel = bgr.data() + (y * kWidth + x) * 3;
                pixel[0] = inside ? 10 : 120;
                pixel[1] = inside ? static_cast<uint8_t>(40 * object) : 110;
                pixel[2] = inside ? 240 : 100;
            }
    }
    vosrt_image frame() const { return vosrt::bgr(bgr.data(), kHeight, kWidth); }
    vosrt_image marks() const { return vosrt::mask(mask.data(), kHeight, kWidth); }
};

vosrt::Model make_model() {
    vosrt_memory_options memory = vosrt::memory_options();
    memory.context = 3;
    memory.threads = 1;
    memory.precision = VOSRT_PRECISION_FP32;
    vosrt_model_options options = vosrt::model_options();
    options.channels = kChannels;
    options.memory = &memory;
    return vosrt::Model::create(options, std::make_unique<Colours>()).value();
}

std::vector<uint8_t> labels_of(const vosrt::Frame &frame) { return {frame.labels.all().begin(), frame.labels.all().end()}; }

std::vector<std::vector<uint8_t>> track(const vosrt::Model &model, int object) {
    auto stream = vosrt::Stream::open(model).value();
    std::vector<std::vector<uint8_t>> all;
    Picture picture;
    for (int t = 0; t < 12; ++t) {
        picture.draw(t, object);
        const auto frame = (t == 0 ? stream.step(picture.frame(), picture.marks()) : stream.step(picture.frame())).value();
        CHECK(frame.index == t && frame.object_ids.size() == 1 && frame.object_ids[0] == object);
        all.push_back(labels_of(frame));
    }
    return all;
}

int64_t resident_kib() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("VmRSS:", 0) == 0) return std::stoll(line.substr(6));
    return 0;
}

void many_threads_share_a_model() {
    const vosrt::Model model = make_model();
    CHECK(model.describe().find("mean colours") != std::string::npos);
    std::vector<std::vector<std::vector<uint8_t>>> alone, together(4);
    for (int i = 0; i < 4; ++i) alone.push_back(track(model, i + 1));
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back([&, i] { together[i] = track(model, i + 1); });
    for (auto &thread : threads) thread.join();
    CHECK(together == alone);
}

void a_session_goes_on_where_it_was_saved() {
    const vosrt::Model model = make_model();
    auto stream = vosrt::Stream::open(model).value();
    Picture picture;
    picture.draw(0, 5);
    stream.step(picture.frame(), picture.marks()).value();
    const std::vector<uint8_t> session = stream.save().value();
    auto copy = vosrt::Stream::load(model, {session.data(), session.size()}).value();
    CHECK(labels_of(copy.result().value()) == labels_of(stream.result().value()));
    picture.draw(3, 5);
    CHECK(labels_of(copy.step(picture.frame()).value()) == labels_of(stream.step(picture.frame()).value()));
    const auto refused = vosrt::Stream::load(model, {session.data(), session.size() - 1});
    CHECK(!refused && refused.error().status == VOSRT_INVALID_SESSION);
}

void an_engine_may_throw() {
    auto stream = vosrt::Stream::open(make_model()).value();  // outlives its model's handle
    Picture picture;
    picture.draw(0, 1);
    Colours::fail = true;
    const auto failed = stream.step(picture.frame(), picture.marks());
    Colours::fail = false;
    CHECK(!failed && failed.error().status == VOSRT_ENGINE_FAILED && failed.error().text == "no colours today");
    CHECK(stream.step(picture.frame(), picture.marks()).value().index == 0);
}

void clicks_become_a_mask() {
    constexpr int kTall = 128, kWide = 192;
    std::vector<uint8_t> bgr(kTall * kWide * 3), truth(kTall * kWide);
    std::mt19937 random(1);
    for (int i = 0; i < kTall * kWide; ++i) {
        const int y = i / kWide, x = i % kWide;
        truth[i] = y >= 32 && y < 96 && x >= 40 && x < 120;
        for (int c = 0; c < 3; ++c) bgr[i * 3 + c] = static_cast<uint8_t>((truth[i] ? 40 + 80 * c : 160 - 20 * c) + random() % 16);
    }
    const auto iou = [&](const std::vector<uint8_t> &mask) {
        int both = 0, either = 0;
        for (int i = 0; i < kTall * kWide; ++i) both += mask[i] && truth[i], either += mask[i] || truth[i];
        return static_cast<double>(both) / either;
    };
    const vosrt_image frame = vosrt::bgr(bgr.data(), kTall, kWide);
    auto prompt = vosrt::Prompt::encode(make_model(), frame).value();  // outlives its model's handle
    CHECK(iou(prompt.segment({{80, 64}}).value()) > 0.9);
    for (const vosrt::Prompt::Point beside : {vosrt::Prompt::Point{122, 64}, {80, 99}, {116, 64, false}}) {  // corrects little, keeps the rest
        const auto mask = prompt.segment({{80, 64}, beside}).value();
        CHECK(iou(mask) > 0.9 && mask[static_cast<int>(beside.y) * kWide + static_cast<int>(beside.x)] == beside.positive);
    }
    const vosrt::Prompt::Box box{36, 28, 88, 72};
    CHECK(iou(prompt.segment({}, &box).value()) > 0.9);
    const vosrt_image marks = vosrt::mask(truth.data(), kTall, kWide);
    const auto corrected = prompt.segment({{150, 64, false}}, nullptr, &marks).value();
    CHECK(iou(corrected) > 0.9 && corrected[64 * kWide + 150] == 0);
    CHECK(prompt.segment({{80, 64}}).value() == vosrt::Prompt::encode(make_model(), frame).value().segment({{80, 64}}).value());
    for (const auto &wrong : std::vector<std::vector<vosrt::Prompt::Point>>{{}, {{80, 64, false}}, {{kWide, 5}}, {{-1, 5}}, {{NAN, 5}}})
        CHECK(prompt.segment(wrong).error().status == VOSRT_INVALID_ARGUMENT);
    const vosrt::Prompt::Box outside{150, 28, 88, 72};
    CHECK(prompt.segment({}, &outside).error().status == VOSRT_INVALID_ARGUMENT);
    const vosrt_image small = vosrt::mask(truth.data(), kTall, kWide - 1);
    CHECK(prompt.segment({{80, 64}}, nullptr, &small).error().status == VOSRT_INVALID_ARGUMENT);
    Colours::fail = true;
    CHECK(vosrt::Prompt::encode(make_model(), frame).error().status == VOSRT_ENGINE_FAILED);
    Colours::fail = false;
}

void frames_cost_no_memory() {
    const vosrt::Model model = make_model();
    auto stream = vosrt::Stream::open(model).value();
    Picture picture;
    picture.draw(0, 1);
    stream.step(picture.frame(), picture.marks()).value();
    for (int t = 1; t < 100; ++t) stream.step(picture.frame()).value();
    const int64_t before = resident_kib(), counted = allocations;  // reading the one changes the other
    CHECK(counted > 0);                                            // the counter sees the library
    for (int t = 100; t < kFrames; ++t) {
        picture.draw(t, 1);
        CHECK(stream.step(picture.frame()).value().index == t);
    }
    CHECK(allocations == counted);
    const int64_t grown = resident_kib() - before;
    std::printf("%d frames: no allocation, %lld KiB more resident\n", kFrames, static_cast<long long>(grown));
#if !defined(VOSRT_TEST_SANITIZED)
    CHECK(grown < 256);
#endif
}

}  // namespace

int main() {
    many_threads_share_a_model();
    a_session_goes_on_where_it_was_saved();
    an_engine_may_throw();
    clicks_become_a_mask();
    frames_cost_no_memory();
    return 0;
}
