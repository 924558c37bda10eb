// Follows the objects of a mask through a folder of PNG frames, on OpenVINO (or what engine.hpp offers):
//
//     vos_embed BUNDLE FRAMES MASK.png RESULTS [bf16|int8|auto]
//
// MASK.png marks objects in the first frame; RESULTS receives a palette PNG per frame, under the frame's name.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <vosrt.hpp>

#include "engine.hpp"
#include "png_file.hpp"

namespace fs = std::filesystem;

static std::vector<fs::path> frames_in(const fs::path &folder) {
    std::vector<fs::path> frames;
    for (const auto &entry : fs::directory_iterator(folder))
        if (entry.path().extension() == ".png") frames.push_back(entry.path());
    std::sort(frames.begin(), frames.end());
    if (frames.empty()) throw std::runtime_error(folder.string() + " holds no PNG frames");
    return frames;
}

static void run(const fs::path &where, const fs::path &source, const fs::path &first_mask, const fs::path &results,
                const std::string &mode) {
    const auto started = std::chrono::steady_clock::now();
    auto bundle = vosrt::Bundle::open(where.string()).value();
    vosrt_model_options options = bundle.model_options();
    vosrt_memory_options memory = *options.memory;  // matching in the encoder's precision
    memory.precision = mode.empty() ? VOSRT_PRECISION_FP32 : mode == "bf16" ? VOSRT_PRECISION_BF16
                                                                            : VOSRT_PRECISION_AUTO;
    options.memory = &memory;
    auto model = vosrt::Model::create(options, open_engine(bundle, mode)).value();
    auto stream = vosrt::Stream::open(model).value();
    const std::chrono::duration<double> start_up = std::chrono::steady_clock::now() - started;
    std::cerr << model.describe() << "\nstart-up " << 1e3 * start_up.count() << " ms\n";

    const auto frames = frames_in(source);
    const Pixels marks = read_mask(first_mask);
    fs::create_directories(results);
    double encode_ms = 0, match_ms = 0, labels_ms = 0;
    std::vector<double> steps;
    for (const fs::path &path : frames) {
        const Pixels pixels = read_bgr(path);
        const vosrt_image frame = vosrt::bgr(pixels.data.data(), pixels.height, pixels.width);
        const bool first = path == frames.front();
        const auto began = std::chrono::steady_clock::now();
        const auto done =
            (first ? stream.step(frame, vosrt::mask(marks.data.data(), marks.height, marks.width)) : stream.step(frame))
                .value();
        const std::chrono::duration<double, std::milli> step = std::chrono::steady_clock::now() - began;
        write_labels(results / path.filename(), done.labels.all().data(), done.labels.height(), done.labels.width());
        if (first && frames.size() > 1) continue;  // it compiles the graph
        steps.push_back(step.count());
        encode_ms += done.encode_ms;
        match_ms += done.match_ms;
        labels_ms += done.labels_ms;
    }
    const double count = static_cast<double>(steps.size());
    std::nth_element(steps.begin(), steps.begin() + static_cast<ptrdiff_t>(steps.size() / 2), steps.end());
    std::cerr << frames.size() << " frames; median step " << steps[steps.size() / 2]
              << " ms; mean ms of its stages: encoder " << encode_ms / count << ", match " << match_ms / count
              << ", labels " << labels_ms / count << '\n';
}

int main(int count, char **arguments) {
    if (count != 5 && count != 6) {
        std::cerr << "usage: vos_embed BUNDLE FRAMES MASK.png RESULTS" << kModes << '\n';
        return 2;
    }
    try {
        run(arguments[1], arguments[2], arguments[3], arguments[4], count == 6 ? arguments[5] : "");
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
