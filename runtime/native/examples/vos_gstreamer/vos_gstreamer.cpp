// Follows an object through whatever GStreamer reads, and hands the masks to whatever GStreamer writes:
//
//     vos_gstreamer BUNDLE SOURCE X,Y,WIDTH,HEIGHT SINK
//     vos_gstreamer bundle "filesrc location=in.mp4 ! decodebin" 120,80,200,160 "pngenc ! multifilesink location=%05d.png"
//
// SOURCE and SINK are what gst-launch-1.0 takes. The box, in pixels, marks an object in the first frame. SINK is given GRAY8
// frames, 1 on the object and 0 elsewhere, with the time stamps of the video.
#include <gst/app/gstappsink.h>
#include <gst/app/gstappsrc.h>
#include <gst/video/video.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>
#include <vosrt_openvino.hpp>

template <class T>
struct Unref {
    void operator()(T *object) const { gst_object_unref(object); }
};
template <class T>
using Object = std::unique_ptr<T, Unref<T>>;

struct UnrefSample {
    void operator()(GstSample *sample) const { gst_sample_unref(sample); }
};
using Sample = std::unique_ptr<GstSample, UnrefSample>;

// A pipeline that stops when it goes out of scope.
class Pipeline {
   public:
    explicit Pipeline(const std::string &description) {
        GError *error = nullptr;
        pipeline_.reset(gst_parse_launch(description.c_str(), &error));
        const std::unique_ptr<GError, void (*)(GError *)> owned(error, g_error_free);
        if (error != nullptr) throw std::runtime_error(description + ": " + error->message);
        bus_.reset(gst_element_get_bus(pipeline_.get()));
    }
    ~Pipeline() { gst_element_set_state(pipeline_.get(), GST_STATE_NULL); }
    Pipeline(const Pipeline &) = delete;
    Pipeline &operator=(const Pipeline &) = delete;

    Object<GstElement> element(const char *name) const {
        return Object<GstElement>(gst_bin_get_by_name(GST_BIN(pipeline_.get()), name));
    }
    void play() {
        gst_element_set_state(pipeline_.get(), GST_STATE_PLAYING);
        check();
    }
    void check() const { receive(GST_MESSAGE_ERROR, 0); }  // throws what went wrong
    void finish() const { receive(GstMessageType(GST_MESSAGE_ERROR | GST_MESSAGE_EOS), GST_CLOCK_TIME_NONE); }

   private:
    void receive(GstMessageType types, GstClockTime patience) const {
        const std::unique_ptr<GstMessage, void (*)(GstMessage *)> message(
            gst_bus_timed_pop_filtered(bus_.get(), patience, types), [](GstMessage *it) { gst_message_unref(it); });
        if (!message || GST_MESSAGE_TYPE(message.get()) != GST_MESSAGE_ERROR) return;
        GError *error = nullptr;
        gst_message_parse_error(message.get(), &error, nullptr);
        const std::unique_ptr<GError, void (*)(GError *)> owned(error, g_error_free);
        throw std::runtime_error(std::string(GST_OBJECT_NAME(GST_MESSAGE_SRC(message.get()))) + ": " + error->message);
    }
    Object<GstElement> pipeline_;
    Object<GstBus> bus_;
};

// A frame's pixels, mapped for reading as long as this lives; vosrt reads them where they lie, padding and all.
class Mapped {
   public:
    explicit Mapped(GstSample *sample) {
        if (!gst_video_info_from_caps(&info, gst_sample_get_caps(sample)) ||
            !gst_video_frame_map(&frame_, &info, gst_sample_get_buffer(sample), GST_MAP_READ))
            throw std::runtime_error("a frame cannot be read");
    }
    ~Mapped() { gst_video_frame_unmap(&frame_); }
    Mapped(const Mapped &) = delete;
    Mapped &operator=(const Mapped &) = delete;

    vosrt_image image() const {
        const auto plane = [&](int i) { return static_cast<const uint8_t *>(GST_VIDEO_FRAME_PLANE_DATA(&frame_, i)); };
        vosrt_image out = vosrt::bgr(plane(0), info.height, info.width, GST_VIDEO_FRAME_PLANE_STRIDE(&frame_, 0));
        if (GST_VIDEO_INFO_FORMAT(&info) == GST_VIDEO_FORMAT_NV12) {
            const bool is_709 = info.colorimetry.matrix == GST_VIDEO_COLOR_MATRIX_BT709;
            out.format = is_709 ? VOSRT_FORMAT_NV12_709 : VOSRT_FORMAT_NV12;
            out.chroma = plane(1);
            out.chroma_stride = GST_VIDEO_FRAME_PLANE_STRIDE(&frame_, 1);
        }
        return out;
    }
    GstVideoInfo info;

   private:
    GstVideoFrame frame_;
};

// The next frame, or null at the end of the video.
static Sample next(const Pipeline &source, GstAppSink *frames) {
    for (;;) {
        if (Sample sample{gst_app_sink_try_pull_sample(frames, 100 * GST_MSECOND)}) return sample;
        const bool ended = gst_app_sink_is_eos(frames);
        source.check();  // what failed may end the video, or leave it waiting
        if (ended) return nullptr;
    }
}

// Hands on the labels of the newest frame.
static void push(const Pipeline &sink, GstAppSrc *masks, const vosrt::Stream &stream, const Mapped &frame,
                 GstBuffer *timed) {
    GstVideoInfo info;
    gst_video_info_set_format(&info, GST_VIDEO_FORMAT_GRAY8, static_cast<guint>(frame.info.width),
                              static_cast<guint>(frame.info.height));
    info.fps_n = frame.info.fps_n;
    info.fps_d = frame.info.fps_d;
    const std::unique_ptr<GstCaps, void (*)(GstCaps *)> caps(gst_video_info_to_caps(&info),
                                                             [](GstCaps *it) { gst_caps_unref(it); });
    gst_app_src_set_caps(masks, caps.get());
    GstBuffer *buffer = gst_buffer_new_allocate(nullptr, GST_VIDEO_INFO_SIZE(&info), nullptr);
    gst_buffer_copy_into(buffer, timed, GST_BUFFER_COPY_TIMESTAMPS, 0, static_cast<gsize>(-1));
    GstMapInfo memory;
    gst_buffer_map(buffer, &memory, GST_MAP_WRITE);
    const vosrt::Status copied = stream.copy_labels(memory.data, GST_VIDEO_INFO_PLANE_STRIDE(&info, 0));
    gst_buffer_unmap(buffer, &memory);
    if (!copied) throw std::runtime_error(copied.error().text);
    while (gst_app_src_get_current_level_bytes(masks) >
           4 * GST_VIDEO_INFO_SIZE(&info)) {  // the sink is slower than we are
        sink.check();
        g_usleep(1000);
    }
    if (gst_app_src_push_buffer(masks, buffer) != GST_FLOW_OK) sink.check();
}

static std::vector<uint8_t> box_mask(const std::string &box, int32_t height, int32_t width) {
    int left, top, across, down, end = 0;
    if (std::sscanf(box.c_str(), "%d,%d,%d,%d%n", &left, &top, &across, &down, &end) != 4 ||
        box[static_cast<size_t>(end)] != '\0')
        throw std::runtime_error("the box is " + box + "; expected X,Y,WIDTH,HEIGHT in pixels, e.g. 120,80,200,160");
    std::vector<uint8_t> mask(static_cast<size_t>(height) * static_cast<size_t>(width));
    for (int32_t y = 0; y < height; ++y)
        for (int32_t x = 0; x < width; ++x)
            mask[static_cast<size_t>(y) * static_cast<size_t>(width) + static_cast<size_t>(x)] =
                x >= left && x - left < across && y >= top && y - top < down;
    return mask;
}

static void run(const std::string &where, const std::string &video, const std::string &box,
                const std::string &masks_to) {
    const auto bundle = vosrt::Bundle::open(where).value();
    const auto model = vosrt::Model::create(bundle, vosrt::OpenVino::open(bundle).value()).value();
    auto stream = vosrt::Stream::open(model).value();
    Pipeline source(video +
                    " ! videoconvert ! appsink name=frames sync=false max-buffers=4 "
                    "caps=\"video/x-raw,format=BGR;video/x-raw,format=NV12,colorimetry=(string){bt601,bt709}\"");
    Pipeline sink("appsrc name=masks format=time ! videoconvert ! " + masks_to);
    const auto frames = source.element("frames"), masks = sink.element("masks");
    source.play();
    sink.play();
    int64_t count = 0;
    double milliseconds = 0;
    while (const Sample sample = next(source, GST_APP_SINK(frames.get()))) {
        const Mapped frame(sample.get());
        const auto done = count > 0 ? stream.step(frame.image()).value() : [&] {
            const std::vector<uint8_t> marks = box_mask(box, frame.info.height, frame.info.width);
            return stream.step(frame.image(), vosrt::mask(marks.data(), frame.info.height, frame.info.width)).value();
        }();
        push(sink, GST_APP_SRC(masks.get()), stream, frame, gst_sample_get_buffer(sample.get()));
        if (++count > 1)
            milliseconds += done.resize_ms + done.encode_ms + done.match_ms + done.labels_ms;  // the first compiles
        if (count == 1)
            std::cerr << GST_VIDEO_INFO_NAME(&frame.info) << ' ' << frame.info.width << 'x' << frame.info.height
                      << '\n';
    }
    gst_app_src_end_of_stream(GST_APP_SRC(masks.get()));
    if (count == 0) throw std::runtime_error("the video has no frames");
    sink.finish();
    std::cerr << count << " frames, " << milliseconds / static_cast<double>(count > 1 ? count - 1 : 1)
              << " ms a frame\n";
}

int main(int count, char **arguments) {
    gst_init(&count, &arguments);
    if (count != 5) {
        std::cerr << "usage: vos_gstreamer BUNDLE SOURCE X,Y,WIDTH,HEIGHT SINK\n";
        return 2;
    }
    try {
        run(arguments[1], arguments[2], arguments[3], arguments[4]);
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
