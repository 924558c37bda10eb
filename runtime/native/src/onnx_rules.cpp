// What a graph of a bundle may compute: the operators of vosrt/onnx_operators.txt, on inputs that engines can bear.
//
// Kernels of engines crash, or read memory that is not theirs, on indices out of range, on sizes that overflow and on integer
// divisions that trap. None of that can be checked where an index or a size comes from the data. So integers are followed through
// the graph: they come from constants and from shapes alone, are bounded where they become a size, and are constants where they
// become an index, a divisor or an axis. Everything else is float arithmetic, which cannot trap.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <sstream>

#include "onnx_file.hpp"
#include "table.hpp"
#include "tables.hpp"

namespace vosrt {
namespace {

constexpr size_t kMaxNodes = 20000, kMaxPorts = 16, kMaxInputs = 64, kMaxRank = 8, kMaxList = 16;
constexpr int64_t kLargestSide = 1 << 14, kMaxConstant = int64_t{1} << 31, kMaxBound = int64_t{1} << 40;
constexpr int64_t kLeast = std::numeric_limits<int64_t>::min(), kMost = std::numeric_limits<int64_t>::max();

enum class Kind {
    floats,
    bytes,
    sizes
};

// What is known of a tensor.
struct Value {
    Kind kind = Kind::floats;
    bool constant = false;                       // it is in the file
    std::optional<std::vector<int64_t>> values;  // of a constant of sizes
    int64_t low = 0, high = 0;                   // of its elements, where maps have 1 to kLargestSide a side
    int64_t length = 0;                          // most elements
    int64_t dynamic = 0;                         // of these, most that are no constants
    int64_t factor = 1;                          // product of those that are
};

struct Operator {
    std::vector<std::string> inputs;
    size_t needed = 0;
    bool variadic = false;
    std::string result;
    std::map<std::string, std::string> attributes;
};

const std::map<std::string, Operator> &operators() {
    static const std::map<std::string, Operator> table = [] {
        std::map<std::string, Operator> out;
        for (const auto &columns : rows_of(kOnnxOperators)) {
            Operator made;
            for (std::string input : split(columns[1], ' ')) {
                const bool optional = input.back() == '?', repeated = input.back() == '.';
                made.needed += !optional && !repeated && input != "none";
                made.variadic |= repeated;
                input.erase(input.find_last_not_of("?.") + 1);
                made.inputs.push_back(input);
            }
            made.result = columns[2];
            for (const std::string &attribute : split(columns[3], ' ')) {
                const size_t equals = attribute.find('=');
                made.attributes[attribute.substr(0, equals)] = attribute.substr(equals + 1);
            }
            out[columns[0]] = made;
        }
        return out;
    }();
    return table;
}

std::optional<Kind> kind_of(int64_t element) {
    switch (element) {
        case kOnnxFloat:
        case kOnnxFloat16: return Kind::floats;
        case kOnnxUint8:
        case kOnnxInt8:
        case kOnnxInt32:
        case kOnnxFloat8: return Kind::bytes;
        case kOnnxInt64: return Kind::sizes;
        default: return std::nullopt;
    }
}

// Saturates at kMaxBound: no limit is larger.
int64_t product(int64_t left, int64_t right) {
    return static_cast<double>(left) * static_cast<double>(right) > static_cast<double>(kMaxBound) ? kMaxBound : left * right;
}

Value sizes(std::vector<int64_t> values) {
    Value out;
    out.kind = Kind::sizes;
    out.constant = true;
    out.length = static_cast<int64_t>(values.size());
    if (!values.empty()) {
        out.low = *std::min_element(values.begin(), values.end());
        out.high = *std::max_element(values.begin(), values.end());
    }
    for (const int64_t value : values)
        out.factor = product(out.factor, value == kLeast ? kMost : std::max<int64_t>(1, std::abs(value)));
    out.values = std::move(values);
    return out;
}

Value constant(const OnnxTensor &tensor, const std::string &title) {
    if (tensor.shape.size() > kMaxRank)
        throw UnsafeGraph{title + " has " + std::to_string(tensor.shape.size()) + " axes; expected at most 8"};
    Value out;
    out.kind = *kind_of(tensor.element);
    out.constant = true;
    if (out.kind != Kind::sizes) return out;
    if (!tensor.values) throw UnsafeGraph{title + " is a long list of integers, which no bundle needs"};
    return sizes(*tensor.values);
}

bool is_allowed(const OnnxAttribute &value, const std::string &allowed) {
    using Type = OnnxAttribute::Kind;
    if (allowed == "tensor") return value.kind == Type::tensor;
    if (allowed == "float") return value.kind == Type::number && std::isfinite(value.number);
    if (const size_t dots = allowed.find(".."); dots != allowed.npos) {
        const size_t begin = allowed[0] == '[';
        const int64_t low = std::stoll(allowed.substr(begin, dots)), high = std::stoll(allowed.substr(dots + 2));
        return value.kind == (begin ? Type::integers : Type::integer) && value.integers.size() <= kMaxList &&
               std::all_of(value.integers.begin(), value.integers.end(), [&](int64_t each) { return low <= each && each <= high; });
    }
    for (const std::string &choice : split(allowed, ',')) {
        if (value.kind == Type::text && value.text == choice) return true;
        const int64_t element = choice == "FLOAT" ? kOnnxFloat : choice == "FLOAT16" ? kOnnxFloat16
                                                                                     : -1;
        if (value.kind == Type::integer && value.integers[0] == element) return true;
    }
    return false;
}

// One node against its line of the table.
class Check {
   public:
    Check(const OnnxNode &node, std::string title, const std::map<std::string, Value> &known,
          const std::map<std::string, std::vector<int64_t>> &shapes)
        : node_(node), title_(std::move(title)), known_(known), shapes_(shapes) {}

    Value result() {
        const auto found = operators().find(node_.type);
        if (found == operators().end()) refuse("its operator is not one that a bundle may use");
        const Operator &line = found->second;
        check_attributes(line);
        if (line.result == "constant") {
            const auto value = node_.attributes.find("value");
            if (value == node_.attributes.end()) refuse("it has no value");
            return constant(value->second.tensor, title_);
        }
        read_inputs(line);
        if (node_.type == "Shape") return shape();
        if (given_.empty() || !given_[0]) refuse("it has no input");
        Value out;
        out.kind = line.result == "first" ? given_[0]->kind : line.result == "bytes" ? Kind::bytes
                                                                                     : Kind::floats;
        return out.kind == Kind::sizes ? size() : out;
    }

   private:
    [[noreturn]] void refuse(const std::string &why) const { throw UnsafeGraph{title_ + ": " + why}; }

    void check_attributes(const Operator &line) const {
        for (const auto &[name, value] : node_.attributes) {
            const auto allowed = line.attributes.find(name);
            if (allowed == line.attributes.end()) refuse("no bundle needs its attribute " + shown_name(name));
            if (!is_allowed(value, allowed->second)) refuse(name + " is out of range; expected " + allowed->second);
        }
    }

    void read_inputs(const Operator &line) {
        const size_t count = node_.inputs.size(), most = line.variadic ? kMaxInputs : line.inputs.size();
        if (count < line.needed || count > most)
            refuse("it has " + std::to_string(count) + " inputs; expected " + std::to_string(line.needed) + " to " +
                   std::to_string(most));
        std::set<Kind> kinds;
        for (size_t i = 0; i < count; ++i) {
            const std::string &wanted = line.inputs[std::min(i, line.inputs.size() - 1)], &name = node_.inputs[i];
            if (name.empty()) {
                if (wanted != "none" && i < line.needed) refuse("its input " + std::to_string(i) + " is left out");
                given_.push_back(nullptr);
                continue;
            }
            const auto value = known_.find(name);
            if (value == known_.end()) refuse("nothing before it computes its input " + shown_name(name));
            check_input(wanted, value->second, shown_name(name));
            given_.push_back(&value->second);
            kinds.insert(value->second.kind);
        }
        for (const std::string &wanted : line.inputs)
            if ((wanted == "number" || wanted == "alike" || wanted == "divisor") && kinds.size() > 1)
                refuse("its inputs are of different kinds");
    }

    static bool admits(const std::string &wanted, Kind kind) {
        if (wanted == "float" || wanted == "scale") return kind == Kind::floats;
        if (wanted == "bytes" || wanted == "zero") return kind == Kind::bytes;
        if (wanted == "number" || wanted == "divisor") return kind != Kind::bytes;
        if (wanted == "map") return kind != Kind::sizes;
        if (wanted == "any" || wanted == "alike") return true;
        return wanted != "none" && kind == Kind::sizes;
    }

    void check_input(const std::string &wanted, const Value &value, const std::string &name) const {
        static const std::map<std::string, std::pair<int64_t, int64_t>> ranges = {
            {"axes", {-8, 7}}, {"index", {-1, 0}}, {"step", {1, 64}}, {"limit", {kLeast, kMost}}};
        if (!admits(wanted, value.kind))
            refuse("its input " + name + " is " +
                   (value.kind == Kind::sizes ? "integers" : value.kind == Kind::bytes ? "bytes"
                                                                                       : "floats") +
                   ", which may not stand there");
        if ((wanted == "scale" || wanted == "zero") && !value.constant)
            refuse("its input " + name + " is computed; expected a constant");
        if (const auto range = ranges.find(wanted); range != ranges.end()) {
            const auto [low, high] = range->second;
            if (!value.values) refuse("its input " + name + " depends on the data; expected constants");
            for (const int64_t each : *value.values)
                if (each < low || each > high)
                    refuse("its input " + name + " holds " + std::to_string(each) + "; expected " + std::to_string(low) + " to " +
                           std::to_string(high));
        }
        if (wanted == "divisor" && value.kind == Kind::sizes &&
            (!value.values || value.values->empty() || value.low < 1 || value.high > kMaxConstant))
            refuse("it divides sizes by " + name + "; expected constants from 1 on");
        if (wanted == "shape") check_shape(value, name, -1, kMaxConstant, kMaxConstant, 16);
        if (wanted == "extent") check_shape(value, name, 1, kLargestSide, 1 << 16, 4);
    }

    // Sizes that engines multiply with each other, and allocate.
    void check_shape(const Value &value, const std::string &name, int64_t low, int64_t high, int64_t factor,
                     int64_t dynamic) const {
        if (value.low < low || value.high > high || value.factor > factor || value.dynamic > dynamic)
            refuse("its input " + name + " is out of range; expected sizes of " + std::to_string(low) + " to " +
                   std::to_string(high) + ", " + std::to_string(factor) + " elements in all");
    }

    int64_t attribute(const char *name, int64_t otherwise) const {
        const auto found = node_.attributes.find(name);
        return found == node_.attributes.end() ? otherwise : found->second.integers.at(0);
    }

    Value shape() const {
        const auto known = shapes_.find(node_.inputs[0]);
        const int64_t rank = known == shapes_.end() ? static_cast<int64_t>(kMaxRank) : static_cast<int64_t>(known->second.size());
        int64_t first = attribute("start", 0), last = attribute("end", kMaxRank);
        Value out;
        out.kind = Kind::sizes;
        out.low = 1;
        out.high = kLargestSide;
        if (known != shapes_.end()) {
            if (first < 0) first += rank;
            if (last < 0) last += rank;
            for (const int64_t side : known->second) out.high = std::max(out.high, side);
        }
        out.length = first >= 0 && last >= 0 ? std::max<int64_t>(0, std::min(last, rank) - first) : rank;
        out.dynamic = out.length;
        return out;
    }

    Value size() const {
        if (node_.type == "Add" || node_.type == "Sub" || node_.type == "Mul" || node_.type == "Div") return computed();
        if (node_.type == "Concat") return joined();
        if (node_.type == "Slice" || node_.type == "Gather") return some();
        return *given_[0];
    }

    Value computed() const {
        const Value &left = *given_[0], &right = *given_[1];
        for (const Value *each : {&left, &right})
            if (each->low < -kMaxBound || each->high > kMaxBound ||
                (each->values && (each->low < -kMaxConstant || each->high > kMaxConstant)))
                refuse("it computes with an integer that is no size");
        Value out;
        out.kind = Kind::sizes;
        if (node_.type == "Add") {
            out.low = left.low + right.low;
            out.high = left.high + right.high;
        } else if (node_.type == "Sub") {
            out.low = left.low - right.high;
            out.high = left.high - right.low;
        } else if (node_.type == "Div") {
            out.low = std::min(left.low, left.low / right.low);
            out.high = std::max<int64_t>(0, left.high / right.low);
        } else {
            for (const int64_t one : {left.low, left.high})
                for (const int64_t other : {right.low, right.high})
                    if (std::abs(static_cast<double>(one) * static_cast<double>(other)) > static_cast<double>(kMaxBound))
                        refuse("it computes sizes without a bound");
            const auto corners = {left.low * right.low, left.low * right.high, left.high * right.low, left.high * right.high};
            out.low = std::min(corners);
            out.high = std::max(corners);
        }
        if (out.low < -kMaxBound || out.high > kMaxBound) refuse("it computes sizes without a bound");
        out.length = out.dynamic = std::max(left.length, right.length);
        return out;
    }

    Value joined() const {
        std::vector<int64_t> values;
        bool constants = true;
        Value out;
        out.kind = Kind::sizes;
        out.low = kMost;
        out.high = kLeast;
        for (const Value *each : given_) {
            if (each == nullptr) continue;
            out.low = std::min(out.low, each->low);
            out.high = std::max(out.high, each->high);
            out.length += each->length;
            out.dynamic += each->dynamic;
            out.factor = product(out.factor, each->factor);
            constants &= each->values.has_value();
            if (each->values) values.insert(values.end(), each->values->begin(), each->values->end());
        }
        return constants ? sizes(std::move(values)) : out;
    }

    // Some elements of a list of sizes.
    Value some() const {
        Value out = *given_[0];
        if (node_.type == "Gather") {
            out.length = std::min(out.length, given_[1]->length);
        } else if (!given_[1]->values->empty() && !given_[2]->values->empty()) {
            const int64_t start = given_[1]->values->front(), end = given_[2]->values->front();
            if ((start < 0) == (end < 0))
                out.length = std::min(out.length, end > start ? end - start : 0);
            else if (start < 0)
                out.length = std::min(out.length, start < -kMaxBound ? kMaxBound : -start);
        }
        out.dynamic = out.constant ? out.length : std::min(out.dynamic, out.length);
        out.constant = false;
        out.values.reset();
        return out;
    }

    const OnnxNode &node_;
    const std::string title_;
    const std::map<std::string, Value> &known_;
    const std::map<std::string, std::vector<int64_t>> &shapes_;  // of the graph's inputs
    std::vector<const Value *> given_;
};

// Positions of nodes, each behind those that compute its inputs: ONNX asks for that order, engines do not. Nodes that
// wait for themselves or for what nothing computes come last; they are refused when they are checked.
std::vector<size_t> in_order(const std::vector<OnnxNode> &nodes, const std::map<std::string, Value> &known) {
    std::map<std::string, std::vector<size_t>> waiting;
    std::vector<size_t> missing, order;
    for (size_t i = 0; i < nodes.size(); ++i) {
        std::set<std::string> names;
        for (const std::string &name : nodes[i].inputs)
            if (!name.empty() && !known.contains(name)) names.insert(name);
        missing.push_back(names.size());
        for (const std::string &name : names) waiting[name].push_back(i);
        if (names.empty()) order.push_back(i);
    }
    for (size_t next = 0; next < order.size(); ++next)  // grows meanwhile
        for (const std::string &name : nodes[order[next]].outputs) {
            for (const size_t later : waiting[name])
                if (--missing[later] == 0) order.push_back(later);
            waiting.erase(name);
        }
    for (size_t i = 0; i < nodes.size(); ++i)
        if (missing[i] != 0) order.push_back(i);
    return order;
}

}  // namespace

void check_graph(const OnnxGraph &graph) {
    const GraphInterface &interface = graph.interface;
    if (graph.nodes.size() > kMaxNodes)
        throw UnsafeGraph{"it has " + std::to_string(graph.nodes.size()) + " nodes; a bundle's graph has at most " +
                          std::to_string(kMaxNodes)};
    if (std::max(interface.inputs.size(), interface.outputs.size()) > kMaxPorts)
        throw UnsafeGraph{"it has more than " + std::to_string(kMaxPorts) + " inputs or outputs"};
    std::map<std::string, Value> known;
    std::map<std::string, std::vector<int64_t>> shapes;
    for (const auto &[name, declared] : interface.inputs) {
        if (graph.constants.contains(name)) continue;  // a weight that callers could replace; none does
        const std::optional<Kind> kind = kind_of(declared.element);
        if (!kind || *kind == Kind::sizes || declared.shape.size() > kMaxRank)
            throw UnsafeGraph{"its input " + shown_name(name) + " is no map of floats or bytes"};
        known[name].kind = *kind;
        shapes[name] = declared.shape;
    }
    for (const auto &[name, tensor] : graph.constants) known[name] = constant(tensor, "the tensor " + shown_name(name));
    for (const size_t i : in_order(graph.nodes, known)) {
        const OnnxNode &node = graph.nodes[i];
        const std::string type = shown_name(node.type);
        const std::string title = "node " + (node.name.empty() ? std::to_string(i) : shown_name(node.name)) + " (" +
                                  type.substr(1, type.size() - 2) + ")";
        Value made = Check(node, title, known, shapes).result();
        if (node.outputs.size() != 1 || node.outputs[0].empty())
            throw UnsafeGraph{title + " has " + std::to_string(node.outputs.size()) + " outputs; expected one"};
        if (!known.emplace(node.outputs[0], std::move(made)).second)
            throw UnsafeGraph{title + " writes " + shown_name(node.outputs[0]) + ", which exists already"};
    }
    for (const auto &[name, declared] : interface.outputs)
        if (!known.contains(name)) throw UnsafeGraph{"nothing computes its output " + shown_name(name)};
}

}  // namespace vosrt
