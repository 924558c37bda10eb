#include "onnx_file.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "error.hpp"
#include "json.hpp"

namespace vosrt {
namespace {

enum class Message {
    model,
    graph,
    node,
    attribute,
    tensor
};

struct Malformed {
    std::string what;
};

constexpr int32_t kMaxFields = 1 << 20;  // a network of 1000 nodes has some 20 000
constexpr size_t kMaxName = 1000, kMaxList = 64;
constexpr uint64_t kHuge = std::numeric_limits<int64_t>::max();

// What a message may not hold, by the field's number in onnx.proto.
constexpr struct {
    Message message;
    uint64_t number;
    const char *what;
} kRefused[] = {{Message::model, 20, "training information"},
                {Message::model, 25, "functions of its own"},
                {Message::graph, 15, "sparse weights"},
                {Message::attribute, 6, "control flow (a graph inside a node)"},
                {Message::attribute, 11, "control flow (graphs inside a node)"},
                {Message::attribute, 22, "sparse weights"},
                {Message::attribute, 23, "sparse weights"},
                {Message::tensor, 3, "a part of a tensor"},
                {Message::tensor, 6, "text in a tensor"},
                {Message::tensor, 10, "weights in double precision"},
                {Message::tensor, 11, "64-bit weights"},
                {Message::tensor, 13, "weights outside the file (external data)"}};
constexpr uint64_t kExternal = 1;
constexpr uint8_t kOutputTag = 12 << 3 | 2, kValueInfoTag = 13 << 3 | 2;  // of a graph's fields

using Bytes = std::span<const uint8_t>;

struct Field {
    uint64_t number, wire, value;
    Bytes part;
    const uint8_t *end;  // of the whole field

    bool is_number() const { return wire == 0; }
};

uint64_t bytes_of(int64_t element) {
    switch (element) {
        case kOnnxFloat:
        case kOnnxInt32: return 4;
        case kOnnxUint8:
        case kOnnxInt8:
        case kOnnxFloat8: return 1;
        case kOnnxInt64: return 8;
        case kOnnxFloat16: return 2;
        default: return 0;
    }
}

bool holds(uint64_t field, int64_t element) {
    switch (field) {
        case 4: return element == kOnnxFloat;
        case 5: return element != kOnnxFloat && element != kOnnxInt64;
        case 7: return element == kOnnxInt64;
        default: return true;
    }
}

class Reader {
   public:
    OnnxGraph read(Bytes file) {
        each_field(Message::model, file, [&](const Field &field) {
            if (field.number == 7) graph(part(field));
        });
        if (found_.interface.outputs.empty()) throw Malformed{"it has no output"};
        return std::move(found_);
    }

    // Offsets of the tags of all outputs, one byte each.
    std::vector<size_t> output_tags(Bytes file) {
        std::vector<size_t> tags;
        each_field(Message::model, file, [&](const Field &model) {
            if (model.number != 7) return;
            const uint8_t *begin = part(model).data();
            each_field(Message::graph, part(model), [&](const Field &field) {
                if (field.number == 12 && *begin != kOutputTag) throw Malformed{"the tag of an output is not one byte"};
                if (field.number == 12) tags.push_back(static_cast<size_t>(begin - file.data()));
                begin = field.end;
            });
        });
        return tags;
    }

   private:
    void graph(Bytes bytes) {
        each_field(Message::graph, bytes, [&](const Field &field) {
            if (field.number == 1) found_.nodes.push_back(node(part(field)));
            if (field.number == 5) {
                std::string name;
                OnnxTensor made = tensor(part(field), name);
                if (!found_.constants.emplace(name, std::move(made)).second)
                    throw UnsafeGraph{"two weights are named " + shown_name(name)};
            }
            if (field.number == 11) declare(found_.interface.inputs, part(field));
            if (field.number == 12) {
                const std::string name = declare(found_.interface.outputs, part(field));
                auto &names = found_.interface.output_names;
                if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
            }
        });
    }

    OnnxNode node(Bytes bytes) {
        OnnxNode out;
        each_field(Message::node, bytes, [&](const Field &field) {
            switch (field.number) {
                case 1: out.inputs.push_back(text(field)); break;
                case 2: out.outputs.push_back(text(field)); break;
                case 3: out.name = text(field); break;
                case 4: out.type = text(field); break;
                case 5: {
                    std::string name;
                    OnnxAttribute made = attribute(part(field), name);
                    if (!out.attributes.emplace(name, std::move(made)).second)
                        throw UnsafeGraph{"a node has the attribute " + shown_name(name) + " twice"};
                    break;
                }
                case 7:
                    if (const std::string domain = text(field); !domain.empty() && domain != "ai.onnx")
                        throw UnsafeGraph{"it needs operators of " + shown_name(domain)};
                    break;
                default: break;
            }
        });
        return out;
    }

    OnnxAttribute attribute(Bytes bytes, std::string &name) {
        using Kind = OnnxAttribute::Kind;
        OnnxAttribute out;
        uint64_t declared = 0, tensors = 0;
        std::map<Kind, bool> given;
        each_field(Message::attribute, bytes, [&](const Field &field) {
            switch (field.number) {
                case 1: name = text(field); break;
                case 20: declared = field.value; break;
                case 2:
                    if (field.wire != 5) throw Malformed{"it has no number where one is expected"};
                    std::memcpy(&out.number, field.part.data(), sizeof out.number);
                    given[Kind::number] = true;
                    break;
                case 3:
                    out.integers = {static_cast<int64_t>(field.value)};
                    given[Kind::integer] = true;
                    break;
                case 4:
                    out.text = text(field);
                    given[Kind::text] = true;
                    break;
                case 5: {
                    std::string unused;
                    if (++tensors > 1) throw UnsafeGraph{"an attribute has two tensors"};
                    out.tensor = tensor(part(field), unused);
                    given[Kind::tensor] = true;
                    break;
                }
                case 8:
                    numbers(field, [&](uint64_t value) { out.integers.push_back(static_cast<int64_t>(value)); });
                    given[Kind::integers] = true;
                    break;
                case 7:
                case 9:
                case 10:
                case 14:
                case 15:
                case 21:
                    throw UnsafeGraph{"the attribute " + shown_name(name) + " is of a kind that no bundle needs"};
                default: break;
            }
        });
        if (declared == static_cast<uint64_t>(Kind::integers)) given[Kind::integers] = true;
        if (given.size() != 1 || static_cast<uint64_t>(given.begin()->first) != declared)
            throw UnsafeGraph{"the attribute " + shown_name(name) + " has no value, or not the one that it declares"};
        out.kind = given.begin()->first;
        return out;
    }

    OnnxTensor tensor(Bytes bytes, std::string &name) {
        OnnxTensor out;
        std::vector<Field> data;
        uint64_t elements = 1;
        const uint64_t limit = 2 * bytes.size();
        each_field(Message::tensor, bytes, [&](const Field &field) {
            switch (field.number) {
                case 1:
                    // Not even elements of four bits come cheaper; the engine would allocate what the shape says.
                    numbers(field, [&](uint64_t size) {
                        if (size > limit || (size != 0 && elements > limit / size))
                            throw UnsafeGraph{"it holds a tensor that claims to be larger than the file"};
                        elements *= size;
                        out.shape.push_back(static_cast<int64_t>(size));
                    });
                    break;
                case 2: out.element = static_cast<int64_t>(std::min(field.value, kHuge)); break;
                case 8: name = text(field); break;
                case 14:
                    if (field.is_number() && field.value == kExternal)
                        throw UnsafeGraph{"it holds weights outside the file (external data)"};
                    break;
                case 4:
                case 5:
                case 7:
                case 9: data.push_back(field); break;
                default: break;
            }
        });
        if (bytes_of(out.element) == 0)
            throw UnsafeGraph{"the tensor " + shown_name(name) + " has elements of type " + std::to_string(out.element) +
                              ", which no bundle needs"};
        check_data(out, shown_name(name), elements, data);
        return out;
    }

    // A tensor's data must be whole and finite; takes the values of short lists of integers.
    void check_data(OnnxTensor &tensor, const std::string &name, uint64_t elements, const std::vector<Field> &data) {
        uint64_t found = 0;
        for (const Field &field : data) {
            if (field.number != data[0].number || (field.number == 9 && data.size() > 1))
                throw UnsafeGraph{"the tensor " + name + " has its data twice"};
            if (!holds(field.number, tensor.element))
                throw UnsafeGraph{"the tensor " + name + " has data of another type than it declares"};
            const bool plain = field.number == 4 || field.number == 9;
            if (plain && (field.is_number() || (field.number == 9 && field.wire != 2)))
                throw Malformed{"the data of " + name + " is no data"};
            if (plain)
                found += field.part.size();
            else
                found += field.is_number() ? 1
                                           : static_cast<uint64_t>(std::count_if(field.part.begin(), field.part.end(),
                                                                                 [](uint8_t byte) { return byte < 0x80; }));
        }
        const bool plain = data.empty() || data[0].number == 4 || data[0].number == 9;
        if (found != elements * (plain ? bytes_of(tensor.element) : 1))
            throw UnsafeGraph{"the tensor " + name + " has another number of values than its shape says"};
        for (const Field &field : data)
            if (!is_finite(tensor.element, field)) throw UnsafeGraph{"the weights " + name + " hold NaN or infinity"};
        if (tensor.element != kOnnxInt64 || elements > kMaxList) return;
        std::vector<int64_t> &values = tensor.values.emplace();
        for (const Field &field : data) {
            if (field.number == 9)
                for (size_t at = 0; at + 8 <= field.part.size(); at += 8) {
                    int64_t value;
                    std::memcpy(&value, field.part.data() + at, sizeof value);
                    values.push_back(value);
                }
            else
                numbers(field, [&](uint64_t value) { values.push_back(static_cast<int64_t>(value)); });
        }
    }

    static bool is_finite(int64_t element, const Field &field) {
        const Bytes part = field.part;
        if (element == kOnnxFloat16 && field.number == 5) {
            bool finite = true;
            const auto look = [&](uint64_t bits) { finite &= (bits & 0x7c00) != 0x7c00; };
            if (field.is_number())
                look(field.value);
            else
                for (Bytes rest = part; !rest.empty();) look(varint(rest));
            return finite;
        }
        uint32_t all = 0;  // set where an exponent has every bit
        if (element == kOnnxFloat)
            for (size_t at = 0; at + 4 <= part.size(); at += 4) {
                uint32_t bits;
                std::memcpy(&bits, part.data() + at, sizeof bits);
                all |= (bits & 0x7f800000u) == 0x7f800000u;
            }
        if (element == kOnnxFloat16)
            for (size_t at = 0; at + 2 <= part.size(); at += 2) {
                uint16_t bits;
                std::memcpy(&bits, part.data() + at, sizeof bits);
                all |= (bits & 0x7c00u) == 0x7c00u;
            }
        if (element == kOnnxFloat8 && field.number == 9)
            for (const uint8_t bits : part) all |= (bits & 0x7fu) == 0x7fu;
        return all == 0;
    }

    // Takes name and type of a ValueInfoProto, and returns the name; something else than a tensor has element 0.
    std::string declare(std::map<std::string, TensorType> &into, Bytes bytes) {
        std::string name;
        TensorType type;
        fields(bytes, [&](const Field &value) {
            if (value.number == 1) name = text(value);
            if (value.number != 2) return;
            fields(part(value), [&](const Field &of_kind) {
                if (of_kind.number != 1) return;
                fields(part(of_kind), [&](const Field &tensor) {
                    if (tensor.number == 1) type.element = static_cast<int64_t>(std::min(tensor.value, kHuge));
                    if (tensor.number != 2) return;
                    fields(part(tensor), [&](const Field &dimension) {
                        if (dimension.number == 1) type.shape.push_back(size(dimension));
                    });
                });
            });
        });
        into[name] = std::move(type);
        return name;
    }

    int64_t size(const Field &dimension) {
        int64_t out = -1;
        fields(part(dimension), [&](const Field &field) {
            if (field.number == 1 && field.is_number()) out = static_cast<int64_t>(std::min(field.value, kHuge));
            if (field.number == 2) out = -1;
        });
        return out;
    }

    // The fields of a message, none of which is one that is refused.
    template <class Body>
    void each_field(Message kind, Bytes bytes, const Body &body) {
        fields(bytes, [&](const Field &field) {
            for (const auto &refused : kRefused)
                if (refused.message == kind && refused.number == field.number)
                    throw UnsafeGraph{std::string("it holds ") + refused.what};
            body(field);
        });
    }

    template <class Body>
    void fields(Bytes bytes, const Body &body) {
        while (!bytes.empty()) {
            if (--budget_ < 0) throw Malformed{"it has more than " + std::to_string(kMaxFields) + " parts"};
            const uint64_t key = varint(bytes);
            Field field{key >> 3, key & 7, 0, {}, nullptr};
            uint64_t length = 0;
            switch (field.wire) {
                case 0: field.value = varint(bytes); break;
                case 1: length = 8; break;
                case 2: length = varint(bytes); break;
                case 5: length = 4; break;
                default: throw Malformed{"it has no such kind of field"};
            }
            if (field.number == 0 || length > bytes.size()) throw Malformed{"it breaks off or is damaged"};
            field.part = bytes.first(length);
            bytes = bytes.subspan(length);
            field.end = bytes.data();
            body(field);
        }
    }

    static uint64_t varint(Bytes &bytes) {
        uint64_t value = 0;
        for (size_t i = 0; i < std::min<size_t>(bytes.size(), 10); ++i) {
            value |= i == 9 ? static_cast<uint64_t>(bytes[i] & 1) << 63 : static_cast<uint64_t>(bytes[i] & 0x7f) << 7 * i;
            if (bytes[i] < 0x80) {
                bytes = bytes.subspan(i + 1);
                return value;
            }
        }
        throw Malformed{"it holds a number that does not end"};
    }

    // The values of a short repeated integer, packed or not.
    template <class Body>
    static void numbers(const Field &field, const Body &body) {
        if (field.is_number()) return body(field.value);
        if (field.part.size() > kMaxName) throw Malformed{"it holds a list that is too long"};
        for (Bytes rest = field.part; !rest.empty();) body(varint(rest));
    }

    static Bytes part(const Field &field) {
        if (field.wire != 2) throw Malformed{"it has a number where a part is expected"};
        return field.part;
    }

    static std::string text(const Field &field) {
        const Bytes bytes = part(field);
        if (bytes.size() > kMaxName) throw Malformed{"it holds a name of " + std::to_string(bytes.size()) + " bytes"};
        std::string out(bytes.begin(), bytes.end());
        if (find_invalid_utf8(out) != out.npos || out.find('\0') != out.npos) throw Malformed{"it holds a name that is no text"};
        return out;
    }

    OnnxGraph found_;
    int32_t budget_ = kMaxFields;
};

}  // namespace

std::string shown_name(const std::string &text) {
    std::string out = "'";
    for (const char c : text.substr(0, 57)) out += c >= 0x20 && c < 0x7f ? c : '?';
    return out + "'";
}

// What `body` returns; where it refuses the file, one line that names it.
template <class Body>
static auto explained(const std::string &where, const Body &body) {
    try {
        return body();
    } catch (const UnsafeGraph &unsafe) {
        throw Error(VOSRT_INVALID_BUNDLE, where + " is refused: " + unsafe.what + "; take the bundle from its maker again");
    } catch (const Malformed &malformed) {
        throw Error(VOSRT_INVALID_BUNDLE,
                    where + " is not a whole ONNX graph (" + malformed.what + "); export the bundle again");
    }
}

void append_graph(std::vector<uint8_t> &file, std::span<const uint8_t> added, const std::string &embedding, const std::string &where) {
    const std::vector<size_t> tags = explained(where, [&] {
        return Reader().read(added).interface.outputs.count(embedding) ? Reader().output_tags(file) : std::vector<size_t>();
    });
    for (const size_t at : tags) file[at] = kValueInfoTag;
    file.insert(file.end(), added.begin(), added.end());
}

GraphInterface read_interface(std::span<const uint8_t> file, const std::string &where) {
    return explained(where, [&] {
        OnnxGraph graph = Reader().read(file);
        check_graph(graph);
        return std::move(graph.interface);
    });
}

std::vector<std::string> read_outputs(std::span<const uint8_t> file, const std::string &where) {
    return explained(where, [&] { return Reader().read(file).interface.output_names; });
}

void check_encoder(const GraphInterface &interface, const std::string &input, const std::string &output, int64_t channels,
                   const std::string &where) {
    const auto check = [&](const std::string &kind, const std::map<std::string, TensorType> &declared, const std::string &name,
                           int64_t element, const char *type, int64_t last) {
        const auto found = declared.find(name);
        if (found != declared.end() && found->second.element == element && found->second.shape.size() == 4 &&
            found->second.shape[3] == last)
            return;
        std::string have;
        for (const auto &[each, tensor] : declared) {
            if (have.size() > 200) break;
            have += (have.empty() ? "" : ", ") + shown_name(each) + " [";
            for (size_t i = 0; i < std::min<size_t>(tensor.shape.size(), 5); ++i)
                have += (i == 0 ? "" : ", ") + (tensor.shape[i] < 0 ? "any" : std::to_string(tensor.shape[i]));
            have += tensor.shape.size() > 5 ? ", ...]" : "]";
        }
        throw Error(VOSRT_INVALID_BUNDLE, where + ": its " + kind + " are " + (have.empty() ? "none" : have) + "; the manifest says " +
                                              shown_name(name) + " " + type + " [n, height, width, " + std::to_string(last) +
                                              "]; export the bundle again");
    };
    check("inputs", interface.inputs, input, kOnnxUint8, "uint8", 3);
    check("outputs", interface.outputs, output, kOnnxFloat, "float32", channels);
}

}  // namespace vosrt
