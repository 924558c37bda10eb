#include "bundle_schema.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "error.hpp"
#include "ranges.hpp"
#include "table.hpp"
#include "tables.hpp"

namespace vosrt {
namespace {

struct Rule {
    std::string key, kind, words;
    bool optional = false;
    std::vector<std::string> bounds;

    int64_t bound(size_t index) const { return std::stoll(bounds.at(index)); }
};

[[noreturn]] void refuse(const std::string &message) { throw Error(VOSRT_INVALID_BUNDLE, message); }

// Rules in the order of the table, by the object that they are of; "" is the whole document.
const std::map<std::string, std::vector<Rule>> &schema() {
    static const auto table = [] {
        std::map<std::string, std::vector<Rule>> out;
        for (const auto &columns : rows_of(kBundleSchema)) {
            Rule rule;
            std::string key = columns[0];
            rule.optional = key.back() == '?';
            key.erase(key.find_last_not_of("? ") + 1);
            const size_t dot = key.rfind('.');
            rule.key = dot == key.npos ? key : key.substr(dot + 1);
            rule.kind = columns[1];
            rule.bounds = split(columns[2], ' ');
            rule.words = columns[3];
            out[dot == key.npos ? "" : key.substr(0, dot)].push_back(std::move(rule));
        }
        return out;
    }();
    return table;
}

// No control, format, surrogate, private-use or separator character but the space.
bool is_printable(char32_t c) {
    constexpr struct {
        char32_t first, last;
    } kHidden[] = {{0, 0x1f}, {0x7f, 0xa0}, {0xad, 0xad}, {0x600, 0x605}, {0x61c, 0x61c}, {0x6dd, 0x6dd}, {0x70f, 0x70f}, {0x890, 0x891}, {0x8e2, 0x8e2}, {0x1680, 0x1680}, {0x180e, 0x180e}, {0x2000, 0x200f}, {0x2028, 0x202f}, {0x205f, 0x206f}, {0x3000, 0x3000}, {0xd800, 0xf8ff}, {0xfdd0, 0xfdef}, {0xfeff, 0xfeff}, {0xfff0, 0xfffb}, {0xfffe, 0xffff}, {0x110bd, 0x110bd}, {0x110cd, 0x110cd}, {0x13430, 0x1343f}, {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0xe0000, 0xe00ff}, {0xe01f0, 0x10ffff}};
    return std::none_of(std::begin(kHidden), std::end(kHidden),
                        [c](const auto &range) { return c >= range.first && c <= range.last; });
}

// Whether characters such as "a-z0-9_-" hold this one.
bool is_among(const std::string &characters, char c) {
    for (size_t i = 0; i < characters.size(); ++i) {
        const bool span = i + 2 < characters.size() && characters[i + 1] == '-';
        if (c >= characters[i] && c <= characters[span ? i + 2 : i]) return true;
        if (span) i += 2;
    }
    return false;
}

// Whether a text is as long as the table says from its bound `at` on, and made of the characters that it names, if any.
bool is_text(const std::string &text, const Rule &rule, size_t at = 0) {
    int64_t length = 0;
    for (size_t next = 0; next < text.size(); ++length)
        if (!is_printable(next_code_point(text, next))) return false;
    if (length < rule.bound(at) || length > rule.bound(at + 1)) return false;
    if (rule.bounds.size() == at + 2) return true;
    const std::string &first = rule.bounds[at + 2], &further = rule.bounds[at + 3];
    const std::string between = rule.bounds.size() > at + 4 ? rule.bounds[at + 4] : "";
    bool begins = true;
    for (const char c : text) {
        const bool parts = !begins && between.find(c) != between.npos;
        if (!parts && !is_among(begins ? first : further, c)) return false;
        begins = parts;
    }
    return !begins;
}

const Range &range_of(const Rule &rule) {
    return **std::find_if(std::begin(ranges::all), std::end(ranges::all), [&](const Range *each) { return rule.key == each->name; });
}

bool is_integer(const Json &value, const Rule &rule) {
    if (value.kind != Json::Kind::integer) return false;
    if (rule.bounds.empty()) return range_of(rule).holds(value.integer);
    return value.integer >= rule.bound(0) && value.integer <= rule.bound(1);
}

bool holds(const Rule &rule, const Json &value) {
    if (rule.kind == "integer") return is_integer(value, rule);
    if (rule.kind == "size") return value.kind == Json::Kind::null || is_integer(value, rule);
    if (rule.kind == "number")  // as fp32 too, in which a number may become 0
        return (value.kind == Json::Kind::integer || value.kind == Json::Kind::real) && range_of(rule).holds(value.real) &&
               range_of(rule).holds(static_cast<float>(value.real));
    if (rule.kind == "flag") return value.kind == Json::Kind::boolean;
    if (rule.kind == "choice")
        return value.kind == Json::Kind::text &&
               std::find(rule.bounds.begin(), rule.bounds.end(), value.text) != rule.bounds.end();
    if (rule.kind == "text") return value.kind == Json::Kind::text && is_text(value.text, rule);
    return value.kind == Json::Kind::object;
}

std::string expected(const Rule &rule) {
    if (rule.kind == "choice") {
        std::string out;
        for (const std::string &each : rule.bounds) out += (out.empty() ? "'" : " or '") + each + "'";
        return out;
    }
    if (rule.kind == "flag") return "true or false";
    if (rule.kind == "integer" || rule.kind == "size" || rule.kind == "number")
        return (rule.kind == "number" ? "a number" : "an integer") +
               (rule.bounds.empty() ? std::string(", ") + range_of(rule).text : " from " + rule.bounds[0] + " to " + rule.bounds[1]);
    if (rule.kind != "text") return "a JSON object";
    return rule.words.empty() ? rule.bounds[0] + " to " + rule.bounds[1] + " printable characters" : rule.words;
}

class Checker {
   public:
    Checker(const Json &document, const std::string &path) : document_(document), path_(path) {}

    // `owner` is the object's key in the table, `where` the same with the names of graphs.
    void check(const Json &values, const std::string &owner, const std::string &where) const {
        std::set<std::string> known;
        for (const Rule &rule : schema().at(owner)) {
            if (rule.kind == "object" && !rule.bounds.empty() && !is_family(rule.bounds[0])) continue;
            known.insert(rule.key);
            const std::string inner = join(where, rule.key);
            const Json *value = values.find(rule.key);
            if (value == nullptr && rule.optional) continue;
            if (value == nullptr || !holds(rule, *value))
                refuse(path_ + ": '" + shown(inner) + "' is " + (value == nullptr ? "missing" : shown(value->source)) + "; expected " +
                       expected(rule));
            if (rule.kind == "graphs") check_graphs(*value, rule);
            if (rule.kind == "object") check(*value, join(owner, rule.key), inner);
        }
        for (const auto &[key, value] : values.members)
            if (!known.contains(key))
                refuse(path_ + ": '" + shown(key) + "' in " + (where.empty() ? "the manifest" : where) +
                       " is not known to this vosrt; correct it or upgrade vosrt");
    }

   private:
    static std::string join(const std::string &owner, const std::string &key) { return owner.empty() ? key : owner + "." + key; }

    bool is_family(const std::string &name) const {
        const Json *family = document_.find("family");
        return family != nullptr && family->text == name;
    }

    void check_graphs(const Json &graphs, const Rule &rule) const {
        if (static_cast<int64_t>(graphs.members.size()) > rule.bound(0))
            refuse(path_ + ": graphs has " + std::to_string(graphs.members.size()) + " entries; expected at most " + rule.bounds[0]);
        for (const auto &[name, entry] : graphs.members) {
            if (!is_text(name, rule, 1))
                refuse(path_ + ": graphs has the entry '" + shown(name) + "'; expected " + rule.words);
            if (entry.kind != Json::Kind::object) refuse(path_ + ": 'graphs." + name + "' is " + shown(entry.source) + "; expected a JSON object");
            check(entry, "graphs.*", "graphs." + name);
        }
    }

    const Json &document_;
    const std::string &path_;
};

}  // namespace

void check_document(const Json &document, const std::string &where) {
    if (document.kind != Json::Kind::object) refuse(where + ": the manifest is " + shown(document.source) + "; expected a JSON object");
    Checker(document, where).check(document, "", "");
}

}  // namespace vosrt
