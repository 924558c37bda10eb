#include "bundle.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <initializer_list>
#include <map>
#include <system_error>
#include <utility>

#include "bundle_schema.hpp"
#include "error.hpp"
#include "onnx_file.hpp"
#include "sha256.hpp"

namespace vosrt {
namespace {

namespace fs = std::filesystem;

// The encoder's graphs, and the precision that the name of a quantised one promises.
constexpr std::pair<std::string_view, std::string_view> kEncoders[] = {{"encoder", ""}, {"encoder_int8", "int8"}, {"encoder_fp8", "fp8"}};

constexpr int64_t kSchema = 1;
constexpr uintmax_t kMaxManifestBytes = 1 << 20;

// The graphs that a bundle of each family must hold.
constexpr struct {
    std::string_view family;
    std::initializer_list<const char *> roles;
} kFamilies[] = {{"correspondence", {"encoder"}}, {"mask-embedding", {"encoder", "mask_encoder", "decoder"}}};

[[noreturn]] void refuse(const std::string &message) { throw Error(VOSRT_INVALID_BUNDLE, message); }

// What the manifest leaves out keeps its default: it is newer than the bundle.
vosrt_memory_options propagation_of(const Json &values) {
    vosrt_memory_options out = default_memory_options();
    const auto with = [&](const char *key, auto set) {
        if (const Json *value = values.find(key)) set(*value);
    };
    const std::pair<const char *, int32_t &> integers[] = {{"context", out.context}, {"top_k", out.top_k}, {"guided", out.guided}, {"calibration", out.calibration}, {"parts", out.parts}, {"lost_after", out.lost_after}, {"back_after", out.back_after}, {"back_for", out.back_for}};
    const std::pair<const char *, float &> numbers[] = {{"radius", out.radius}, {"temperature", out.temperature}, {"centring", out.centring}, {"sharpness", out.sharpness}, {"object_bias", out.object_bias}, {"motion", out.motion}};
    const std::pair<const char *, double &> shares[] = {{"lost_share", out.lost_share}, {"clear_share", out.clear_share}, {"back_confidence", out.back_confidence}, {"iou_factor", out.iou_factor}, {"iou_power", out.iou_power}};
    const std::pair<const char *, int32_t &> flags[] = {{"pad_context", out.pad_context}, {"yield_background", out.yield_background}};
    for (const auto &[key, to] : integers) with(key, [&to = to](const Json &value) { to = static_cast<int32_t>(value.integer); });
    for (const auto &[key, to] : numbers) with(key, [&to = to](const Json &value) { to = static_cast<float>(value.real); });
    for (const auto &[key, to] : shares) with(key, [&to = to](const Json &value) { to = value.real; });
    for (const auto &[key, to] : flags) with(key, [&to = to](const Json &value) { to = value.boolean; });
    return out;
}

void read_masks(const Json &values, Bundle &out) {
    out.value_channels = static_cast<int32_t>(values.find("value_channels")->integer);
    out.context_name = values.find("context")->text;
    out.rounds = static_cast<int32_t>(values.find("rounds")->integer);
    out.residual = values.find("residual")->boolean;
    if (const Json *feedback = values.find("feedback")) out.feedback = feedback->boolean;
}

GraphFile graph_of(const Json &values, const std::string &name) {
    GraphFile graph;
    graph.name = name;
    graph.file = values.find("file")->text;
    graph.sha256 = values.find("sha256")->text;
    graph.bytes = values.find("bytes")->integer;
    graph.precision = values.find("precision")->text;
    if (const Json *bundle = values.find("bundle")) graph.bundle = bundle->text;
    if (const Json *adds = values.find("adds"))
        graph.adds = {adds->find("file")->text, adds->find("sha256")->text, adds->find("bytes")->integer};
    return graph;
}

fs::path path_of(const std::string &utf8) { return fs::path(std::u8string(utf8.begin(), utf8.end())); }

void check_inside(const fs::path &root, const fs::path &path) {
    const fs::path inner = fs::weakly_canonical(path), outer = fs::weakly_canonical(root);
    const auto [end, rest] = std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
    if (end != outer.end())
        refuse(path.string() + " leads out of the bundle through a link; files must lie inside " + root.string());
}

std::vector<uint8_t> read_file(const fs::path &path, size_t size) {
    std::vector<uint8_t> content(size);
    std::ifstream file(path, std::ios::binary);
    if (!file.read(reinterpret_cast<char *>(content.data()), static_cast<std::streamsize>(size)))
        refuse(path.string() + " cannot be read to its end");
    return content;
}

// Appends a file's bytes, whose size and hash are those of the manifest.
void read_part(const fs::path &path, const GraphPart &part, const std::string &lacking, std::vector<uint8_t> &out) {
    if (!fs::is_regular_file(path)) refuse(lacking);
    if (const uintmax_t size = fs::file_size(path); size != static_cast<uintmax_t>(part.bytes))
        refuse(path.string() + " was altered: it has " + std::to_string(size) + " bytes, the manifest says " +
               std::to_string(part.bytes) + "; copy the bundle again");
    const std::vector<uint8_t> content = read_file(path, static_cast<size_t>(part.bytes));
    Sha256 hash;
    hash.update(content);
    if (const std::string found = hex(hash.finish()); found != part.sha256)
        refuse(path.string() + " was altered: its SHA-256 is " + found.substr(0, 12) + "..., the manifest says " +
               part.sha256.substr(0, 12) + "...; copy the bundle again");
    out.insert(out.end(), content.begin(), content.end());
}

// A graph is its file and, after it, what the bundle adds: protobuf merges them, as it does all parts of a message.
void read_graph(const fs::path &root, const std::string &shown_root, const Bundle &bundle, GraphFile &graph) {
    const bool shared = !graph.bundle.empty();
    const fs::path beside = fs::canonical(root).parent_path();
    const fs::path folder = shared ? beside / path_of(graph.bundle) : root, path = folder / path_of(graph.file);
    check_inside(shared ? beside : root, path);
    read_part(path, graph,
              "bundle " + shown_root + " lacks " + (shared ? graph.file + " of the bundle " + folder.string() : "its file " + graph.file) +
                  (shared ? "; copy both, side by side" : "; copy the whole directory again"),
              graph.content);
    if (graph.adds) {
        const fs::path added = root / path_of(graph.adds->file);
        check_inside(root, added);
        std::vector<uint8_t> content;
        read_part(added, *graph.adds, "bundle " + shown_root + " lacks its file " + graph.adds->file + "; copy the whole directory again",
                  content);
        append_graph(graph.content, content, bundle.output_name, added.string());
    }
    const GraphInterface interface = read_interface(graph.content, path.string());
    if (std::any_of(std::begin(kEncoders), std::end(kEncoders), [&](const auto &each) { return each.first == graph.name; }))
        check_encoder(interface, bundle.input_name, bundle.output_name, bundle.channels, path.string());
    const std::u8string utf8 = path.u8string();
    graph.path.assign(utf8.begin(), utf8.end());
}

std::string read_manifest(const fs::path &root, const std::string &shown_root) {
    if (!fs::exists(root)) refuse("no such bundle: " + shown_root + "; expected a directory with manifest.json");
    if (!fs::is_directory(root)) refuse(shown_root + " is a file; a bundle is a directory with manifest.json");
    const fs::path path = root / "manifest.json";
    if (!fs::is_regular_file(path))
        refuse(shown_root + " is not a bundle: it has no manifest.json; make one with vos-export");
    check_inside(root, path);
    if (const uintmax_t size = fs::file_size(path); size > kMaxManifestBytes)
        refuse(path.string() + " has " + std::to_string(size) + " bytes; a manifest has at most " +
               std::to_string(kMaxManifestBytes));
    std::ifstream file(path, std::ios::binary);
    std::string text(kMaxManifestBytes + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (file.bad() || !file.is_open()) refuse(path.string() + " cannot be read");
    text.resize(static_cast<size_t>(file.gcount()));
    return text;
}

}  // namespace

Bundle parse_manifest(std::string_view text, const std::string &where) {
    if (const size_t at = find_invalid_utf8(text); at != text.npos)
        refuse(where + " is not UTF-8 text (at byte " + std::to_string(at) + ")");
    Json values;
    try {
        values = parse_json(text);
    } catch (const JsonError &error) {
        refuse(where + " " + error.what() + "; copy the bundle again");
    }
    if (const Json *made = values.find("schema"); made != nullptr && made->kind == Json::Kind::integer && made->integer > kSchema)
        refuse(where + " was made by a newer vosrt (schema " + std::to_string(made->integer) + "; this one reads up to " +
               std::to_string(kSchema) + "); upgrade vosrt");
    check_document(values, where);
    const Json &encoder = *values.find("encoder"), &inference = *values.find("inference");
    const auto integer = [](const Json &section, const char *key) { return static_cast<int32_t>(section.find(key)->integer); };
    Bundle out;
    const std::string &family = values.find("family")->text;
    if (const Json *masks = values.find("masks")) read_masks(*masks, out);
    out.name = values.find("name")->text;
    out.trained = values.find("trained")->boolean;
    out.summary = values.find("summary")->text;
    out.channels = integer(encoder, "channels");
    out.feature = encoder.find("feature")->text;
    out.stride = integer(encoder, "stride");
    out.input_name = encoder.find("input_name")->text;
    out.output_name = encoder.find("output_name")->text;
    out.min_side = integer(encoder, "min_side");
    out.max_side = integer(encoder, "max_side");
    if (const int32_t size = integer(inference, "size"); size != 0) out.size = size;  // null is 0
    if (inference.find("enlarge_percent") != nullptr) out.enlarge_percent = integer(inference, "enlarge_percent");
    if (const Json *everywhere = inference.find("global_reference"); everywhere != nullptr && !everywhere->boolean)
        refuse(where + ": 'inference.global_reference' is false; expected true");
    out.memory = propagation_of(inference);
    const Json *corners = encoder.find("align_corners");
    out.memory.align_corners = corners == nullptr || corners->boolean;
    if (family == "mask-embedding" && out.memory.align_corners)
        refuse(where + ": a mask-embedding bundle has encoder.align_corners false; export it again");
    if (out.memory.parts > 1 && out.memory.align_corners)
        refuse(where + ": 'inference.parts' is " + std::to_string(out.memory.parts) + "; expected 1 where encoder.align_corners is true");
    if (out.min_side > out.max_side) refuse(where + ": 'encoder.min_side' is larger than max_side");
    for (const auto &[name, value] : values.find("graphs")->members) out.graphs.push_back(graph_of(value, name));
    const auto find = [&](std::string_view name) {
        return std::find_if(out.graphs.begin(), out.graphs.end(), [&](const GraphFile &each) { return each.name == name; });
    };
    for (const auto &[each, roles] : kFamilies)
        for (const char *role : roles)
            if (each == family && find(role) == out.graphs.end())
                refuse(where + ": 'graphs." + role + "' is missing; expected the file of this graph");
    for (const auto &[role, precision] : kEncoders)
        if (const auto at = find(role); at != out.graphs.end() && !precision.empty() && at->precision != precision)
            refuse(where + ": 'graphs." + at->name + ".precision' is '" + at->precision + "'; expected '" + std::string(precision) + "'");
    const auto found = find("encoder");
    for (size_t i = 0; i < out.encoder_sha256.size(); ++i)
        std::from_chars(found->sha256.data() + 2 * i, found->sha256.data() + 2 * i + 2, out.encoder_sha256[i], 16);
    return out;
}

Bundle open_bundle(const std::string &path) {
    try {
        const fs::path root = path_of(path);
        std::string manifest = read_manifest(root, path);
        Bundle bundle = parse_manifest(manifest, (root / "manifest.json").string());
        bundle.manifest = std::move(manifest);
        bundle.path = path;
        for (GraphFile &graph : bundle.graphs) read_graph(root, path, bundle, graph);
        return bundle;
    } catch (const std::system_error &error) {
        refuse("bundle " + path + " cannot be read: " + error.code().message());
    }
}

}  // namespace vosrt
