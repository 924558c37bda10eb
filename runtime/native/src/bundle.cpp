#include "bundle.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <system_error>

#include "error.hpp"
#include "json.hpp"
#include "onnx_file.hpp"
#include "sha256.hpp"

namespace vosrt {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSchema = 1, kMaxSideOfFrame = 16384;
constexpr uintmax_t kMaxManifestBytes = 1 << 20;
constexpr size_t kMaxGraphs = 16;

[[noreturn]] void refuse(const std::string &message) { throw Error(VOSRT_INVALID_BUNDLE, message); }

// Printable ASCII on one line, cut where it is long.
std::string shown(std::string_view text) {
    std::string out;
    for (const char c : text.substr(0, 57)) out += c >= 0x20 && c < 0x7f ? c : '?';
    return text.size() > 57 ? out + "..." : out;
}

// What Python's str.isprintable refuses: control, format, surrogate, private-use and separator characters but the space.
// Characters that no Unicode version has assigned are refused there and pass here.
bool is_printable(char32_t c) {
    constexpr struct {
        char32_t first, last;
    } kHidden[] = {{0, 0x1f},          {0x7f, 0xa0},        {0xad, 0xad},        {0x600, 0x605},      {0x61c, 0x61c},
                   {0x6dd, 0x6dd},     {0x70f, 0x70f},      {0x890, 0x891},      {0x8e2, 0x8e2},      {0x1680, 0x1680},
                   {0x180e, 0x180e},   {0x2000, 0x200f},    {0x2028, 0x202f},    {0x205f, 0x206f},    {0x3000, 0x3000},
                   {0xd800, 0xf8ff},   {0xfdd0, 0xfdef},    {0xfeff, 0xfeff},    {0xfff0, 0xfffb},    {0xfffe, 0xffff},
                   {0x110bd, 0x110bd}, {0x110cd, 0x110cd},  {0x13430, 0x1343f},  {0x1bca0, 0x1bca3},  {0x1d173, 0x1d17a},
                   {0xe0000, 0xe00ff}, {0xe01f0, 0x10ffff}};
    return std::none_of(std::begin(kHidden), std::end(kHidden),
                        [c](const auto &range) { return c >= range.first && c <= range.last; });
}

bool is_alphanumeric(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }

// Parts of letters, digits, '.', '_' and '-' that begin with a letter or digit, with '/' between them.
bool is_file_name(std::string_view text) {
    bool begins = true;
    for (const char c : text) {
        if (begins ? !is_alphanumeric(c) : !is_alphanumeric(c) && c != '.' && c != '_' && c != '-' && c != '/') return false;
        begins = c == '/';
    }
    return !begins;
}

bool is_tensor_name(std::string_view text) {
    return !text.empty() && (text[0] < '0' || text[0] > '9') && text[0] != '.' &&
           std::all_of(text.begin(), text.end(), [](char c) { return is_alphanumeric(c) || c == '_' || c == '.'; });
}

bool is_role(std::string_view text) {
    return !text.empty() && text.size() <= 40 && text[0] >= 'a' && text[0] <= 'z' &&
           std::all_of(text.begin(), text.end(),
                       [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; });
}

bool is_hash(std::string_view text) {
    return text.size() == 64 &&
           std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// One JSON object being read: typed access by key, and what was never asked for is an error.
class Section {
   public:
    Section(const Json &values, std::string path, std::string where)
        : values_(values), path_(std::move(path)), where_(std::move(where)) {
        if (values.kind != Json::Kind::object)
            refuse(path_ + ": " + (where_.empty() ? "the manifest" : where_) + " is not a JSON object");
    }

    const Json &values() const { return values_; }
    bool has(std::string_view key) const { return values_.find(key) != nullptr; }

    [[noreturn]] void fail(std::string_view key, const std::string &expected) const {
        const std::string name = shown(where_.empty() ? std::string(key) : where_ + "." + std::string(key));
        refuse(path_ + ": '" + name + "' is " + (has(key) ? "impossible" : "missing") + "; expected " + expected);
    }

    Section section(const std::string &key) {
        const Json *value = get(key);
        if (value == nullptr || value->kind != Json::Kind::object) fail(key, "a JSON object");
        return Section(*value, path_, where_.empty() ? key : where_ + "." + key);
    }

    int64_t integer(const std::string &key, int64_t low, int64_t high) {
        const Json *value = get(key);
        if (value == nullptr || value->kind != Json::Kind::integer || value->integer < low || value->integer > high)
            fail(key, low < high ? "an integer from " + std::to_string(low) + " to " + std::to_string(high) : std::to_string(low));
        return value->integer;
    }

    bool flag(const std::string &key) {
        const Json *value = get(key);
        if (value == nullptr || value->kind != Json::Kind::boolean) fail(key, "true or false");
        return value->boolean;
    }

    double number(const std::string &key, double low, double high) {
        const Json *value = get(key);
        if (value == nullptr || (value->kind != Json::Kind::integer && value->kind != Json::Kind::real) ||
            !(value->real >= low && value->real <= high))
            fail(key, "a number from " + std::to_string(low) + " to " + std::to_string(high));
        return value->real;
    }

    std::string text(const std::string &key, size_t longest) {
        const Json *value = get(key);
        bool fits = value != nullptr && value->kind == Json::Kind::text && !value->text.empty();
        size_t length = 0;
        for (size_t at = 0; fits && at < value->text.size(); ++length) fits = is_printable(next_code_point(value->text, at));
        if (!fits || length > longest) fail(key, "1 to " + std::to_string(longest) + " printable characters");
        return value->text;
    }

    std::string text(const std::string &key, size_t longest, bool (*pattern)(std::string_view), const char *expected) {
        std::string value = text(key, longest);
        if (!pattern(value)) fail(key, expected);
        return value;
    }

    std::string choice(const std::string &key, std::initializer_list<const char *> choices) {
        const Json *value = get(key);
        std::string expected;
        for (const char *one : choices) {
            if (value != nullptr && value->kind == Json::Kind::text && value->text == one) return one;
            expected += (expected.empty() ? "'" : " or '") + std::string(one) + "'";
        }
        fail(key, expected);
    }

    void any(const std::string &key) { get(key); }

    void done() const {
        for (const auto &[key, value] : values_.members)
            if (std::find(seen_.begin(), seen_.end(), key) == seen_.end())
                refuse(path_ + ": '" + shown(key) + "' in " + (where_.empty() ? "the manifest" : where_) +
                       " is not known to this vosrt; correct it or upgrade vosrt");
    }

   private:
    const Json *get(const std::string &key) {
        seen_.push_back(key);
        return values_.find(key);
    }

    const Json &values_;
    std::string path_, where_;
    std::vector<std::string> seen_;
};

// Options absent from the manifest keep their default: they are newer than the bundle.
vosrt_memory_options propagation_of(Section &section) {
    vosrt_memory_options out{};
    out.struct_size = sizeof out;
    if (section.has("context")) {
        const auto context = static_cast<int32_t>(section.integer("context", 0, 1024));
        out.context = context == 0 ? -1 : context;
    }
    if (section.has("window"))
        out.window = section.choice("window", {"circle", "square"}) == "square" ? VOSRT_WINDOW_SQUARE : VOSRT_WINDOW_CIRCLE;
    if (section.has("radius")) {
        out.radius = static_cast<float>(section.number("radius", 0.0, 4096.0));
        if (out.radius == 0.0f) section.fail("radius", "more than 0 and at most 4096 cells");
    }
    if (section.has("top_k")) out.top_k = static_cast<int32_t>(section.integer("top_k", 1, 64));
    if (section.has("temperature")) out.temperature = static_cast<float>(section.number("temperature", 1e-4, 1e4));
    if (section.has("pad_context")) out.drop_padding = !section.flag("pad_context");
    if (section.has("global_reference")) out.local_reference = !section.flag("global_reference");
    if (section.has("yield_background")) out.keep_background = !section.flag("yield_background");
    return out;
}

GraphFile graph_of(Section section, const std::string &name) {
    GraphFile graph;
    graph.name = name;
    graph.file = section.text("file", 200, is_file_name, "a plain file name inside the bundle");
    graph.sha256 = section.text("sha256", 64, is_hash, "64 lower-case hexadecimal digits");
    graph.bytes = section.integer("bytes", 1, kMaxGraphBytes);
    graph.precision = section.choice("precision", {"fp32", "fp16"});
    section.done();
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

// The encoder must take and give what the manifest says.
void check_tensor(const std::map<std::string, TensorType> &declared, const std::string &name, int64_t element,
                  int64_t last, const std::string &where) {
    const auto found = declared.find(name);
    if (found != declared.end() && found->second.element == element && found->second.shape.size() == 4 &&
        found->second.shape[3] == last)
        return;
    refuse(where + ": it has no tensor '" + shown(name) + "' of " + (element == kOnnxUint8 ? "uint8" : "float32") +
           " [n, height, width, " + std::to_string(last) + "] as the manifest says; export the bundle again");
}

void check_file(const fs::path &root, const std::string &shown_root, const Bundle &bundle, GraphFile &graph) {
    const fs::path path = root / path_of(graph.file);
    check_inside(root, path);
    if (!fs::is_regular_file(path))
        refuse("bundle " + shown_root + " lacks its file " + graph.file + "; copy the whole directory again");
    if (const uintmax_t size = fs::file_size(path); size != static_cast<uintmax_t>(graph.bytes))
        refuse(path.string() + " was altered: it has " + std::to_string(size) + " bytes, the manifest says " +
               std::to_string(graph.bytes) + "; copy the bundle again");
    const std::vector<uint8_t> content = read_file(path, static_cast<size_t>(graph.bytes));
    Sha256 hash;
    hash.update(content);
    if (const std::string found = hex(hash.finish()); found != graph.sha256)
        refuse(path.string() + " was altered: its SHA-256 is " + found.substr(0, 12) + "..., the manifest says " +
               graph.sha256.substr(0, 12) + "...; copy the bundle again");
    const GraphInterface interface = read_interface(content, path.string());
    if (graph.name == "encoder") {
        check_tensor(interface.inputs, bundle.input_name, kOnnxUint8, 3, path.string());
        check_tensor(interface.outputs, bundle.output_name, kOnnxFloat, bundle.channels, path.string());
    }
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
    Section document(values, where, "");
    if (const int64_t schema = document.integer("schema", 1, int64_t{1} << 31); schema > kSchema)
        refuse(where + " was made by a newer vosrt (schema " + std::to_string(schema) + "; this one reads up to " +
               std::to_string(kSchema) + "); upgrade vosrt");
    Section encoder = document.section("encoder"), inference = document.section("inference");
    Section graphs = document.section("graphs");
    Bundle out;
    document.choice("family", {"correspondence"});
    out.name = document.text("name", 100);
    out.trained = document.flag("trained");
    out.summary = document.text("summary", 1000);
    out.channels = static_cast<int32_t>(encoder.integer("channels", 1, 4096));
    out.feature = encoder.choice("feature", {"res3", "res4", "key"});
    out.stride = static_cast<int32_t>(encoder.integer("stride", 1, 64));
    out.input_name = encoder.text("input_name", 100, is_tensor_name, "a tensor's name");
    out.output_name = encoder.text("output_name", 100, is_tensor_name, "a tensor's name");
    out.min_side = static_cast<int32_t>(encoder.integer("min_side", 1, kMaxSideOfFrame));
    out.max_side = static_cast<int32_t>(encoder.integer("max_side", 1, kMaxSideOfFrame));
    const bool align_corners = !encoder.has("align_corners") || encoder.flag("align_corners");
    inference.any("size");
    if (const Json *size = inference.values().find("size"); size == nullptr || size->kind != Json::Kind::null)
        out.size = static_cast<int32_t>(inference.integer("size", 8, kMaxSideOfFrame));
    out.memory = propagation_of(inference);
    out.memory.half_pixel = align_corners ? 0 : 1;
    if (graphs.values().members.size() > kMaxGraphs)
        refuse(where + ": graphs has " + std::to_string(graphs.values().members.size()) + " entries; expected at most " +
               std::to_string(kMaxGraphs));
    for (const auto &[name, value] : graphs.values().members) {
        if (!is_role(name)) refuse(where + ": graphs has the entry '" + shown(name) + "'; expected names like 'encoder'");
        out.graphs.push_back(graph_of(graphs.section(name), name));
    }
    document.section("verification");
    document.section("provenance");
    if (out.min_side > out.max_side) encoder.fail("min_side", "at most max_side");
    const auto is_encoder = [](const GraphFile &graph) { return graph.name == "encoder"; };
    const auto found = std::find_if(out.graphs.begin(), out.graphs.end(), is_encoder);
    if (found == out.graphs.end()) graphs.fail("encoder", "the encoder's file");
    for (const Section *section : {&document, &encoder, &inference}) section->done();
    for (size_t i = 0; i < out.encoder_sha256.size(); ++i)
        std::from_chars(found->sha256.data() + 2 * i, found->sha256.data() + 2 * i + 2, out.encoder_sha256[i], 16);
    return out;
}

Bundle open_bundle(const std::string &path) {
    try {
        const fs::path root = path_of(path);
        Bundle bundle = parse_manifest(read_manifest(root, path), (root / "manifest.json").string());
        bundle.path = path;
        for (GraphFile &graph : bundle.graphs) check_file(root, path, bundle, graph);
        return bundle;
    } catch (const std::system_error &error) {
        refuse("bundle " + path + " cannot be read: " + error.code().message());
    }
}

}  // namespace vosrt
