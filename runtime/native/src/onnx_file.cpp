#include "onnx_file.hpp"

#include <algorithm>
#include <limits>
#include <string_view>

#include "error.hpp"

namespace vosrt {
namespace {

enum class Message { model, graph, node, attribute, tensor, input, output };

struct Malformed {
    std::string what;
};
struct Unsafe {
    std::string what;
};

constexpr int32_t kMaxFields = 1 << 20;  // a network of 1000 nodes has some 20 000
constexpr size_t kMaxName = 1000;
constexpr uint64_t kHuge = std::numeric_limits<int64_t>::max();

// Field numbers of onnx.proto: where a message holds further ones, and what each of those is.
constexpr struct {
    Message outer;
    uint64_t number;
    Message inner;
} kMessages[] = {{Message::model, 7, Message::graph},      {Message::graph, 1, Message::node},
                 {Message::graph, 5, Message::tensor},     {Message::graph, 11, Message::input},
                 {Message::graph, 12, Message::output},    {Message::node, 5, Message::attribute},
                 {Message::attribute, 5, Message::tensor}, {Message::attribute, 10, Message::tensor}};
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
                {Message::tensor, 13, "weights outside the file (external data)"}};
constexpr uint64_t kNodeDomain = 7, kTensorDims = 1, kTensorLocation = 14, kExternal = 1;

using Bytes = std::span<const uint8_t>;

struct Field {
    uint64_t number, value;
    bool is_number;
    Bytes part;
};

class Reader {
   public:
    GraphInterface read(Bytes file) {
        visit(Message::model, file);
        if (found_.outputs.empty()) throw Malformed{"it has no output"};
        return std::move(found_);
    }

   private:
    void visit(Message kind, Bytes bytes) {
        if (kind == Message::input || kind == Message::output) return declare(kind, bytes);
        const uint64_t limit = 2 * bytes.size();
        uint64_t elements = 1;
        each_field(bytes, [&](const Field &field) {
            for (const auto &refused : kRefused)
                if (refused.message == kind && refused.number == field.number)
                    throw Unsafe{std::string("it holds ") + refused.what};
            if (kind == Message::tensor && field.number == kTensorLocation && field.is_number && field.value == kExternal)
                throw Unsafe{"it holds weights outside the file (external data)"};
            if (kind == Message::node && field.number == kNodeDomain) {
                const std::string domain = text(field);
                if (!domain.empty() && domain != "ai.onnx") throw Unsafe{"it needs operators of " + shown(domain)};
            }
            if (kind == Message::tensor && field.number == kTensorDims) {
                // Not even elements of four bits come cheaper; the engine would allocate what the shape says.
                elements = product(elements, field);
                if (elements > limit) throw Unsafe{"it holds a tensor that claims to be larger than the file"};
            }
            for (const auto &message : kMessages)
                if (message.outer == kind && message.number == field.number) visit(message.inner, part(field));
        });
    }

    // Name and type of a ValueInfoProto; something else than a tensor has element 0.
    void declare(Message kind, Bytes bytes) {
        std::string name;
        TensorType type;
        each_field(bytes, [&](const Field &value) {
            if (value.number == 1) name = text(value);
            if (value.number != 2) return;
            each_field(part(value), [&](const Field &of_kind) {
                if (of_kind.number != 1) return;
                each_field(part(of_kind), [&](const Field &tensor) {
                    if (tensor.number == 1) type.element = static_cast<int64_t>(std::min(tensor.value, kHuge));
                    if (tensor.number != 2) return;
                    each_field(part(tensor), [&](const Field &dimension) {
                        if (dimension.number == 1) type.shape.push_back(size(dimension));
                    });
                });
            });
        });
        (kind == Message::input ? found_.inputs : found_.outputs)[name] = std::move(type);
    }

    int64_t size(const Field &dimension) {
        int64_t out = -1;
        each_field(part(dimension), [&](const Field &field) {
            if (field.number == 1 && field.is_number) out = static_cast<int64_t>(std::min(field.value, kHuge));
            if (field.number == 2) out = -1;
        });
        return out;
    }

    template <class Body>
    void each_field(Bytes bytes, const Body &body) {
        while (!bytes.empty()) {
            if (--budget_ < 0) throw Malformed{"it has more than " + std::to_string(kMaxFields) + " parts"};
            const uint64_t key = varint(bytes);
            Field field{key >> 3, 0, false, {}};
            uint64_t length = 0;
            switch (key & 7) {
                case 0:
                    field.value = varint(bytes);
                    field.is_number = true;
                    break;
                case 1: length = 8; break;
                case 2: length = varint(bytes); break;
                case 5: length = 4; break;
                default: throw Malformed{"it has no such kind of field"};
            }
            if (field.number == 0 || length > bytes.size()) throw Malformed{"it breaks off or is damaged"};
            field.part = bytes.first(length);
            bytes = bytes.subspan(length);
            body(field);
        }
    }

    // Values beyond 63 bits are given as the largest of 64.
    static uint64_t varint(Bytes &bytes) {
        uint64_t value = 0;
        bool huge = false;
        for (size_t i = 0; i < std::min<size_t>(bytes.size(), 10); ++i) {
            if (i == 9)
                huge |= (bytes[i] & 0x7f) != 0;
            else
                value |= static_cast<uint64_t>(bytes[i] & 0x7f) << 7 * i;
            if (bytes[i] < 0x80) {
                bytes = bytes.subspan(i + 1);
                return huge ? std::numeric_limits<uint64_t>::max() : value;
            }
        }
        throw Malformed{"it holds a number that does not end"};
    }

    // `start` times the values of a short repeated integer, packed or not; saturated.
    static uint64_t product(uint64_t start, const Field &field) {
        uint64_t out = start;
        bool zero = start == 0;
        const auto multiply = [&](uint64_t by) {
            zero |= by == 0;
            if (by != 0) out = out > std::numeric_limits<uint64_t>::max() / by ? std::numeric_limits<uint64_t>::max() : out * by;
        };
        if (field.is_number) {
            multiply(field.value);
        } else {
            if (field.part.size() > kMaxName) throw Malformed{"it holds a shape that is too long"};
            for (Bytes rest = field.part; !rest.empty();) multiply(varint(rest));
        }
        return zero ? 0 : out;
    }

    static Bytes part(const Field &field) {
        if (field.is_number) throw Malformed{"it has a number where a part is expected"};
        return field.part;
    }

    static std::string text(const Field &field) {
        const Bytes bytes = part(field);
        if (bytes.size() > kMaxName) throw Malformed{"it holds a name of " + std::to_string(bytes.size()) + " bytes"};
        return {bytes.begin(), bytes.end()};
    }

    static std::string shown(const std::string &text) {
        std::string out = "'";
        for (const char c : text.substr(0, 57)) out += c >= 0x20 && c < 0x7f ? c : '?';
        return out + "'";
    }

    GraphInterface found_;
    int32_t budget_ = kMaxFields;
};

}  // namespace

GraphInterface read_interface(Bytes file, const std::string &where) {
    try {
        return Reader().read(file);
    } catch (const Unsafe &unsafe) {
        throw Error(VOSRT_INVALID_BUNDLE, where + " is refused: " + unsafe.what + "; take the bundle from its maker again");
    } catch (const Malformed &malformed) {
        throw Error(VOSRT_INVALID_BUNDLE,
                    where + " is not a whole ONNX graph (" + malformed.what + "); export the bundle again");
    }
}

}  // namespace vosrt
