// The GStreamer element `vosrt`: follows marked objects through a video.
//
//     gst-launch-1.0 filesrc location=in.mp4 ! decodebin ! videoconvert ! vosrt bundle=BUNDLE boxes=120,80,200,160 ! \
//         videoconvert ! autovideosink
//
// Every buffer that leaves it carries the labels as custom meta (kMeta: its structure's field `labels` is a GstSample of
// GRAY8, 0 = background, else object ids) and one GstVideoRegionOfInterestMeta per object that is seen.
#include <gst/video/gstvideofilter.h>
#include <gst/video/gstvideometa.h>
#include <gst/video/video.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.hpp"
#include "png_file.hpp"

namespace {

constexpr const char *kMeta = "VosrtLabelsMeta", *kRoi = "vosrt";

enum class Output {
    overlay,
    alpha,
    mask,
    meta
};

GType output_type() {
    static const GEnumValue values[] = {{static_cast<int>(Output::overlay), "BGR, objects in their colours", "overlay"},
                                        {static_cast<int>(Output::alpha), "BGRA, transparent outside the objects", "alpha"},
                                        {static_cast<int>(Output::mask), "GRAY8, object ids", "mask"},
                                        {static_cast<int>(Output::meta), "the frame as it came; labels are metadata alone", "meta"},
                                        {0, nullptr, nullptr}};
    static const GType type = g_enum_register_static("GstVosrtOutput", values);
    return type;
}

enum Property {
    PROP_BUNDLE = 1,
    PROP_MASK,
    PROP_BOXES,
    PROP_OUTPUT,
    PROP_SIZE,
    PROP_THREADS,
    PROP_ENGINE,
    PROP_OPACITY
};

struct Settings {
    std::string bundle, mask, boxes, engine;
    Output output = Output::overlay;
    int size = VOSRT_SIZE_DEFAULT, threads = 0;
    double opacity = 0.5;
};

// Objects 1, 2, ... of "X,Y,WIDTH,HEIGHT" in pixels, several parted by semicolons.
Pixels marks_of_boxes(const std::string &boxes, int32_t height, int32_t width) {
    Pixels out{height, width, std::vector<uint8_t>(static_cast<size_t>(height) * static_cast<size_t>(width))};
    const char *at = boxes.c_str();
    for (uint8_t id = 1; *at != '\0'; ++id) {
        int left, top, across, down, length = 0;
        if (std::sscanf(at, "%d,%d,%d,%d%n", &left, &top, &across, &down, &length) != 4 || (at[length] != '\0' && at[length] != ';'))
            throw std::invalid_argument("boxes is '" + boxes + "'; expected X,Y,WIDTH,HEIGHT in pixels, several parted by ';'");
        at += length + (at[length] == ';');
        const int64_t right = std::min<int64_t>(width, int64_t{left} + across), bottom = std::min<int64_t>(height, int64_t{top} + down);
        if (id == 0 || left < 0 || top < 0 || left >= right || top >= bottom)
            throw std::invalid_argument("boxes is '" + boxes + "'; expected at most 255 boxes that meet the frame of " +
                                        std::to_string(width) + "x" + std::to_string(height) + " pixels");
        for (int64_t y = top; y < bottom; ++y)
            std::fill(out.data.begin() + y * width + left, out.data.begin() + y * width + right, id);
    }
    return out;
}

// A mapped frame as vosrt reads it, where it lies.
vosrt_image view_of(const GstVideoFrame &frame) {
    const auto plane = [&](guint i) { return static_cast<const uint8_t *>(GST_VIDEO_FRAME_PLANE_DATA(&frame, i)); };
    vosrt_image out = vosrt::bgr(plane(0), frame.info.height, frame.info.width, GST_VIDEO_FRAME_PLANE_STRIDE(&frame, 0));
    if (GST_VIDEO_FRAME_FORMAT(&frame) == GST_VIDEO_FORMAT_NV12) {
        const bool is_709 = frame.info.colorimetry.matrix == GST_VIDEO_COLOR_MATRIX_BT709;
        out.format = is_709 ? VOSRT_FORMAT_NV12_709 : VOSRT_FORMAT_NV12;
        out.chroma = plane(1);
        out.chroma_stride = GST_VIDEO_FRAME_PLANE_STRIDE(&frame, 1);
    }
    return out;
}

// What one element follows: made when it starts, the stream again when the frames' size changes.
class Follower {
   public:
    explicit Follower(const Settings &settings) : model_(load(settings)) {}

    void resize() { stream_.reset(); }

    // The labels of a frame, or null where nothing was marked yet. `mark`: take the marks of the settings.
    std::optional<vosrt::Frame> step(const GstVideoFrame &frame, const Settings &settings, bool mark) {
        const int32_t height = frame.info.height, width = frame.info.width;
        if (!stream_) {
            vosrt_stream_options options = vosrt::stream_options();
            options.size = settings.size;
            options.threads = settings.threads;
            stream_.emplace(vosrt::Stream::open(model_, &options).value());
            marked_ = false;
            mark = true;
        }
        if (!mark || (settings.mask.empty() && settings.boxes.empty())) {
            if (!marked_) return std::nullopt;
            return stream_->step(view_of(frame)).value();
        }
        if (!settings.mask.empty() && !settings.boxes.empty()) throw std::invalid_argument("mask and boxes are both set; set one");
        const Pixels marks = settings.mask.empty() ? marks_of_boxes(settings.boxes, height, width) : read_mask(settings.mask);
        vosrt::Frame done = stream_->step(view_of(frame), vosrt::mask(marks.data.data(), marks.height, marks.width)).value();
        marked_ = true;
        return done;
    }

   private:
    static vosrt::Model load(const Settings &settings) {
        if (settings.bundle.empty()) throw std::invalid_argument("bundle is not set; name the folder of one");
        const vosrt::Bundle bundle = vosrt::Bundle::open(settings.bundle).value();
        return vosrt::Model::create(bundle, open_engine(bundle, settings.engine)).value();
    }
    vosrt::Model model_;
    std::optional<vosrt::Stream> stream_;
    bool marked_ = false;
};

// The palette of DAVIS, blue, green, red.
struct Colour {
    uint8_t bgr[3];
};
Colour colour_of(int id) {
    Colour out{};
    for (int bit = 0; bit < 8; ++bit)
        for (int c = 0; c < 3; ++c) out.bgr[2 - c] |= static_cast<uint8_t>((id >> (3 * bit + c) & 1) << (7 - bit));
    return out;
}

template <class Put>
void each_pixel(const GstVideoFrame &in, GstVideoFrame &out, int bytes, const vosrt::Frame &done, const Put &put) {
    const auto row = [](const GstVideoFrame &frame, int y) {
        return static_cast<uint8_t *>(GST_VIDEO_FRAME_PLANE_DATA(&frame, 0)) + static_cast<ptrdiff_t>(y) * GST_VIDEO_FRAME_PLANE_STRIDE(&frame, 0);
    };
    for (int y = 0; y < in.info.height; ++y) {
        const uint8_t *from = row(in, y);
        uint8_t *to = row(out, y);
        for (int x = 0; x < in.info.width; ++x, from += 3, to += bytes) put(from, to, done.labels(y, x));
    }
}

void draw(const GstVideoFrame &in, GstVideoFrame &out, const vosrt::Frame &done, const Settings &settings) {
    if (settings.output == Output::mask) {
        const int64_t stride = GST_VIDEO_FRAME_PLANE_STRIDE(&out, 0);
        auto *to = static_cast<uint8_t *>(GST_VIDEO_FRAME_PLANE_DATA(&out, 0));
        for (int y = 0; y < in.info.height; ++y) std::memcpy(to + y * stride, done.labels.row(y).data(), done.labels.row(y).size());
    } else if (settings.output == Output::alpha) {
        each_pixel(in, out, 4, done, [](const uint8_t *from, uint8_t *to, uint8_t label) {
            std::memcpy(to, from, 3);
            to[3] = label == 0 ? 0 : 255;
        });
    } else if (settings.output == Output::overlay) {
        const int part = static_cast<int>(settings.opacity * 256);
        std::vector<Colour> colours;
        for (int id = 0; id < 256; ++id) colours.push_back(colour_of(id));
        each_pixel(in, out, 3, done, [&](const uint8_t *from, uint8_t *to, uint8_t label) {
            for (int c = 0; c < 3; ++c)
                to[c] = label == 0 ? from[c] : static_cast<uint8_t>((from[c] * (256 - part) + colours[label].bgr[c] * part) >> 8);
        });
    } else {
        gst_video_frame_copy(&out, &in);
    }
}

// What is drawn before anything was marked.
void draw_nothing(const GstVideoFrame &in, GstVideoFrame &out, const Settings &settings) {
    if (settings.output == Output::overlay || settings.output == Output::meta) {
        gst_video_frame_copy(&out, &in);
        return;
    }
    const size_t stride = static_cast<size_t>(GST_VIDEO_FRAME_PLANE_STRIDE(&out, 0));
    std::memset(GST_VIDEO_FRAME_PLANE_DATA(&out, 0), 0, stride * static_cast<size_t>(out.info.height));
}

void attach(GstBuffer *buffer, const vosrt::Frame &done) {
    GstVideoInfo info;
    gst_video_info_set_format(&info, GST_VIDEO_FORMAT_GRAY8, static_cast<guint>(done.labels.width()), static_cast<guint>(done.labels.height()));
    GstBuffer *labels = gst_buffer_new_allocate(nullptr, GST_VIDEO_INFO_SIZE(&info), nullptr);
    for (int32_t y = 0; y < done.labels.height(); ++y)
        gst_buffer_fill(labels, static_cast<gsize>(y) * static_cast<gsize>(GST_VIDEO_INFO_PLANE_STRIDE(&info, 0)), done.labels.row(y).data(), done.labels.row(y).size());
    GstCaps *caps = gst_video_info_to_caps(&info);
    GstSample *sample = gst_sample_new(labels, caps, nullptr, nullptr);
    if (GstCustomMeta *meta = gst_buffer_add_custom_meta(buffer, kMeta))
        gst_structure_set(gst_custom_meta_get_structure(meta), "labels", GST_TYPE_SAMPLE, sample, "frame", G_TYPE_INT64, done.index, nullptr);
    gst_sample_unref(sample);
    gst_caps_unref(caps);
    gst_buffer_unref(labels);
    for (size_t i = 0; i < done.objects.size(); ++i) {
        const vosrt_object &object = done.objects[i];
        if (!object.present) continue;
        GstVideoRegionOfInterestMeta *roi = gst_buffer_add_video_region_of_interest_meta(
            buffer, kRoi, static_cast<guint>(object.x), static_cast<guint>(object.y), static_cast<guint>(object.width), static_cast<guint>(object.height));
        roi->id = object.id;
        gst_video_region_of_interest_meta_add_param(
            roi, gst_structure_new(kRoi, "id", G_TYPE_INT, object.id, "confidence", G_TYPE_DOUBLE, static_cast<double>(object.confidence), "area",
                                   G_TYPE_INT64, object.area_px, "state", G_TYPE_INT, static_cast<int>(done.objects.state(i)), nullptr));
    }
}

}  // namespace

struct GstVosrt {
    GstVideoFilter parent;
    Settings *settings;  // guarded by the object's lock
    Follower *follower;  // of the streaming thread, between start and stop
    gboolean mark;       // the marks are to be taken at the next frame; guarded as the settings
    gboolean warned;
};
struct GstVosrtClass {
    GstVideoFilterClass parent_class;
};
G_DEFINE_TYPE(GstVosrt, gst_vosrt, GST_TYPE_VIDEO_FILTER)

static Settings settings_of(GstVosrt *self, gboolean *mark = nullptr) {
    GST_OBJECT_LOCK(self);
    Settings out = *self->settings;
    if (mark != nullptr) *mark = std::exchange(self->mark, FALSE);
    GST_OBJECT_UNLOCK(self);
    return out;
}

static void set_property(GObject *object, guint id, const GValue *value, GParamSpec *spec) {
    auto *self = reinterpret_cast<GstVosrt *>(object);
    const auto text = [&](std::string &to) {
        const char *given = g_value_get_string(value);
        to = given == nullptr ? "" : given;
    };
    GST_OBJECT_LOCK(self);
    Settings &settings = *self->settings;
    switch (id) {
        case PROP_BUNDLE: text(settings.bundle); break;
        case PROP_MASK: text(settings.mask), self->mark = TRUE; break;
        case PROP_BOXES: text(settings.boxes), self->mark = TRUE; break;
        case PROP_OUTPUT: settings.output = static_cast<Output>(g_value_get_enum(value)); break;
        case PROP_SIZE: settings.size = g_value_get_int(value); break;
        case PROP_THREADS: settings.threads = g_value_get_int(value); break;
        case PROP_ENGINE: text(settings.engine); break;
        case PROP_OPACITY: settings.opacity = g_value_get_double(value); break;
        default: G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
    }
    GST_OBJECT_UNLOCK(self);
}

static void get_property(GObject *object, guint id, GValue *value, GParamSpec *spec) {
    const Settings settings = settings_of(reinterpret_cast<GstVosrt *>(object));
    switch (id) {
        case PROP_BUNDLE: g_value_set_string(value, settings.bundle.c_str()); break;
        case PROP_MASK: g_value_set_string(value, settings.mask.c_str()); break;
        case PROP_BOXES: g_value_set_string(value, settings.boxes.c_str()); break;
        case PROP_OUTPUT: g_value_set_enum(value, static_cast<int>(settings.output)); break;
        case PROP_SIZE: g_value_set_int(value, settings.size); break;
        case PROP_THREADS: g_value_set_int(value, settings.threads); break;
        case PROP_ENGINE: g_value_set_string(value, settings.engine.c_str()); break;
        case PROP_OPACITY: g_value_set_double(value, settings.opacity); break;
        default: G_OBJECT_WARN_INVALID_PROPERTY_ID(object, id, spec);
    }
}

static void finalize(GObject *object) {
    auto *self = reinterpret_cast<GstVosrt *>(object);
    delete self->settings;
    G_OBJECT_CLASS(gst_vosrt_parent_class)->finalize(object);
}

static gboolean start(GstBaseTransform *base) {
    auto *self = reinterpret_cast<GstVosrt *>(base);
    try {
        self->follower = new Follower(settings_of(self));
        self->warned = FALSE;
        return TRUE;
    } catch (const std::exception &error) {
        GST_ELEMENT_ERROR(self, LIBRARY, INIT, ("%s", error.what()), (nullptr));
        return FALSE;
    }
}

static gboolean stop(GstBaseTransform *base) {
    auto *self = reinterpret_cast<GstVosrt *>(base);
    delete std::exchange(self->follower, nullptr);
    return TRUE;
}

// Formats of one side that go with those of the other; everything but the format is kept.
static GstCaps *transform_caps(GstBaseTransform *base, GstPadDirection direction, GstCaps *caps, GstCaps *filter) {
    const Output output = settings_of(reinterpret_cast<GstVosrt *>(base)).output;
    const bool drawn = output == Output::overlay || output == Output::alpha;
    GstCaps *out = gst_caps_new_empty();
    const auto add = [&](const GstStructure *from, const char *format, const char *colorimetry) {
        GstStructure *made = gst_structure_copy(from);
        gst_structure_remove_fields(made, "format", "colorimetry", "chroma-site", nullptr);
        gst_structure_set(made, "format", G_TYPE_STRING, format, nullptr);
        if (colorimetry != nullptr) gst_structure_set(made, "colorimetry", G_TYPE_STRING, colorimetry, nullptr);
        out = gst_caps_merge_structure(out, made);
    };
    for (guint i = 0; i < gst_caps_get_size(caps); ++i) {
        const GstStructure *from = gst_caps_get_structure(caps, i);
        if (output == Output::meta) {
            out = gst_caps_merge_structure(out, gst_structure_copy(from));
        } else if (direction == GST_PAD_SINK) {
            add(from, output == Output::alpha ? "BGRA" : output == Output::mask ? "GRAY8"
                                                                                : "BGR",
                nullptr);
        } else {
            add(from, "BGR", nullptr);
            if (!drawn)
                for (const char *matrix : {"bt601", "bt709"}) add(from, "NV12", matrix);
        }
    }
    // Drawing needs BGR: without this an NV12 source would be taken and then drawn upon as if it were BGR.
    GstPad *own = direction == GST_PAD_SINK ? GST_BASE_TRANSFORM_SRC_PAD(base) : GST_BASE_TRANSFORM_SINK_PAD(base);
    GstCaps *possible = gst_pad_get_pad_template_caps(own);
    for (GstCaps *limit : {possible, filter})
        if (limit != nullptr) {
            GstCaps *both = gst_caps_intersect_full(out, limit, GST_CAPS_INTERSECT_FIRST);
            gst_caps_unref(out);
            out = both;
        }
    gst_caps_unref(possible);
    return out;
}

static gboolean accept_info(GstVideoFilter *filter, GstCaps *, GstVideoInfo *in, GstCaps *, GstVideoInfo *) {
    auto *self = reinterpret_cast<GstVosrt *>(filter);
    const Output output = settings_of(self).output;
    if (GST_VIDEO_INFO_FORMAT(in) != GST_VIDEO_FORMAT_BGR && (output == Output::overlay || output == Output::alpha)) return FALSE;
    if (self->follower != nullptr) self->follower->resize();
    return TRUE;
}

static GstFlowReturn transform_frame(GstVideoFilter *filter, GstVideoFrame *in, GstVideoFrame *out) {
    auto *self = reinterpret_cast<GstVosrt *>(filter);
    gboolean mark = FALSE;
    const Settings settings = settings_of(self, &mark);
    try {
        const auto done = self->follower->step(*in, settings, mark);
        if (done) {
            draw(*in, *out, *done, settings);
            attach(out->buffer, *done);
            return GST_FLOW_OK;
        }
        if (!std::exchange(self->warned, TRUE))
            GST_ELEMENT_WARNING(self, STREAM, FAILED, ("nothing is marked: set mask or boxes; until then frames pass without labels"), (nullptr));
        draw_nothing(*in, *out, settings);
        return GST_FLOW_OK;
    } catch (const std::exception &error) {
        GST_ELEMENT_ERROR(self, STREAM, FAILED, ("%s", error.what()), (nullptr));
        return GST_FLOW_ERROR;
    }
}

static void gst_vosrt_init(GstVosrt *self) {
    self->settings = new Settings;
    self->mark = TRUE;
}

static void gst_vosrt_class_init(GstVosrtClass *type) {
    auto *object = G_OBJECT_CLASS(type);
    auto *element = GST_ELEMENT_CLASS(type);
    object->set_property = set_property;
    object->get_property = get_property;
    object->finalize = finalize;
    const auto flags = static_cast<GParamFlags>(G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS);
    const auto playing = static_cast<GParamFlags>(flags | GST_PARAM_MUTABLE_PLAYING);
    const auto text = [&](Property id, const char *name, const char *nick, const char *blurb, GParamFlags with) {
        g_object_class_install_property(object, id, g_param_spec_string(name, nick, blurb, nullptr, with));
    };
    text(PROP_BUNDLE, "bundle", "Bundle", "folder of the bundle", flags);
    text(PROP_MASK, "mask", "Mask", "PNG file of the frames' size whose pixels are object ids, 0 = background; marks the next frame", playing);
    text(PROP_BOXES, "boxes", "Boxes", "X,Y,WIDTH,HEIGHT in pixels, several parted by ';': objects 1, 2, ... of the next frame", playing);
    text(PROP_ENGINE, "engine", "Engine", "what the engine takes: a precision (fp32, bf16, int8, auto), on TensorRT the engine file", flags);
    g_object_class_install_property(object, PROP_OUTPUT, g_param_spec_enum("output", "Output", "what leaves the element", output_type(), static_cast<int>(Output::overlay), flags));
    g_object_class_install_property(object, PROP_SIZE, g_param_spec_int("size", "Size", "short side of the working frame in pixels; 0: the bundle's, -1: the frame's own", -1, 16384, 0, flags));
    g_object_class_install_property(object, PROP_THREADS, g_param_spec_int("threads", "Threads", "of matching; 0: one per processor", 0, 1024, 0, flags));
    g_object_class_install_property(object, PROP_OPACITY, g_param_spec_double("opacity", "Opacity", "of the overlay's colours", 0, 1, 0.5, playing));
    gst_element_class_set_static_metadata(element, "Video object segmentation", "Filter/Effect/Video", "Follows marked objects through a video", "vosrt");
    const auto pad = [&](const char *name, GstPadDirection direction, const char *text) {
        GstCaps *caps = gst_caps_from_string(text);
        gst_element_class_add_pad_template(element, gst_pad_template_new(name, direction, GST_PAD_ALWAYS, caps));
        gst_caps_unref(caps);
    };
    const std::string nv12 = ";video/x-raw,format=NV12,colorimetry=(string){bt601,bt709}";
    pad("sink", GST_PAD_SINK, ("video/x-raw,format=BGR" + nv12).c_str());
    pad("src", GST_PAD_SRC, ("video/x-raw,format=(string){BGR,BGRA,GRAY8}" + nv12).c_str());
    auto *base = GST_BASE_TRANSFORM_CLASS(type);
    base->start = start;
    base->stop = stop;
    base->transform_caps = transform_caps;
    base->passthrough_on_same_caps = FALSE;
    auto *video = GST_VIDEO_FILTER_CLASS(type);
    video->set_info = accept_info;
    video->transform_frame = transform_frame;
    gst_type_mark_as_plugin_api(output_type(), static_cast<GstPluginAPIFlags>(0));
}

static gboolean plugin_init(GstPlugin *plugin) {
    static const gchar *tags[] = {GST_META_TAG_VIDEO_STR, nullptr};
    if (gst_meta_get_info(kMeta) == nullptr) gst_meta_register_custom(kMeta, tags, nullptr, nullptr, nullptr);
    return gst_element_register(plugin, "vosrt", GST_RANK_NONE, gst_vosrt_get_type());
}

GST_PLUGIN_DEFINE(GST_VERSION_MAJOR, GST_VERSION_MINOR, vosrt, "Video object segmentation with vosrt", plugin_init, VERSION, "Apache 2.0", PACKAGE,
                  "vosrt")
