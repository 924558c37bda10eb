#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <limits>

namespace vosrt {
namespace {

constexpr int kMaxDepth = 32;        // levels, the document being one
constexpr size_t kMaxDigits = 4300;  // of an integer, as in Python

void append_utf8(std::string &out, char32_t c) {
    const auto put = [&out](char32_t byte) { out += static_cast<char>(byte); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xc0 | c >> 6);
        put(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
        put(0xe0 | c >> 12);
        put(0x80 | (c >> 6 & 0x3f));
        put(0x80 | (c & 0x3f));
    } else {
        put(0xf0 | c >> 18);
        put(0x80 | (c >> 12 & 0x3f));
        put(0x80 | (c >> 6 & 0x3f));
        put(0x80 | (c & 0x3f));
    }
}

class Parser {
   public:
    explicit Parser(std::string_view text) : text_(text) {}

    Json document() {
        Json value = this->value(0);
        skip_space();
        if (at_ != text_.size()) fail("text behind the end");
        return value;
    }

   private:
    [[noreturn]] void fail(const char *what) const {
        throw JsonError(std::string("is not JSON: ") + what + " at byte " + std::to_string(at_));
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    bool take(char c) {
        if (at_ >= text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }
    void skip_space() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
            ++at_;
    }
    bool take_word(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Json value(int depth) {
        if (depth == kMaxDepth) throw JsonError("cannot be used: it is nested deeper than " + std::to_string(kMaxDepth) + " levels");
        skip_space();
        const size_t from = at_;
        Json out = plain_value(depth);
        out.source = text_.substr(from, at_ - from);
        return out;
    }

    Json plain_value(int depth) {
        Json out;
        const char c = peek();
        if (c == '{') return object(depth);
        if (c == '[') return array(depth);
        if (c == '"') {
            out.kind = Json::Kind::text;
            out.text = string();
            return out;
        }
        if (take_word("null")) return out;
        if (take_word("true") || take_word("false")) {
            out.kind = Json::Kind::boolean;
            out.boolean = text_[at_ - 2] == 'u';
            return out;
        }
        if (take_word("NaN") || take_word("Infinity") || take_word("-Infinity"))
            throw JsonError("cannot be used: it holds what is not a finite number");
        return number();
    }

    Json object(int depth) {
        Json out;
        out.kind = Json::Kind::object;
        ++at_;
        skip_space();
        if (take('}')) return out;
        do {
            skip_space();
            if (peek() != '"') fail("expected a key");
            std::string key = string();
            skip_space();
            if (!take(':')) fail("expected ':'");
            out.members.push_back({std::move(key), value(depth + 1)});
            skip_space();
        } while (take(','));
        if (!take('}')) fail("expected ',' or '}'");
        std::vector<std::string_view> keys;
        for (const auto &member : out.members) keys.push_back(member.key);
        std::sort(keys.begin(), keys.end());
        if (const auto twice = std::adjacent_find(keys.begin(), keys.end()); twice != keys.end())
            throw JsonError("cannot be used: the key '" + shown(*twice) + "' occurs twice in one object");
        return out;
    }

    Json array(int depth) {
        Json out;
        out.kind = Json::Kind::array;
        ++at_;
        skip_space();
        if (take(']')) return out;
        do {
            out.items.push_back(value(depth + 1));
            skip_space();
        } while (take(','));
        if (!take(']')) fail("expected ',' or ']'");
        return out;
    }

    char32_t hex4() {
        uint32_t out = 0;
        const auto digits = text_.substr(at_, 4);
        const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), out, 16);
        if (error != std::errc{} || end != digits.data() + 4) fail("expected four hexadecimal digits");
        at_ += 4;
        return out;
    }

    std::string string() {
        std::string out;
        for (++at_; !take('"');) {
            const char c = peek();
            if (at_ >= text_.size()) fail("a string without its end");
            if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
            ++at_;
            if (c != '\\') {
                out += c;
                continue;
            }
            const char escape = peek();
            ++at_;
            constexpr std::string_view kEscapes = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
            if (escape == 'u') {
                char32_t unit = hex4();
                if (unit >= 0xd800 && unit < 0xdc00 && text_.substr(at_, 2) == "\\u") {
                    const size_t before = at_;
                    at_ += 2;
                    const char32_t low = hex4();
                    if (low >= 0xdc00 && low < 0xe000)
                        unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                    else
                        at_ = before;
                }
                append_utf8(out, unit);
            } else if (const size_t i = kEscapes.find(escape); escape != '\0' && i != kEscapes.npos) {
                out += kMeanings[i];
            } else {
                fail("an unknown escape");
            }
        }
        return out;
    }

    size_t digits() {
        const size_t from = at_;
        while (peek() >= '0' && peek() <= '9') ++at_;
        return at_ - from;
    }

    Json number() {
        const size_t from = at_;
        take('-');
        const bool zero = peek() == '0';
        const size_t whole = zero ? (++at_, 1) : digits();
        if (whole == 0) fail("expected a value");
        Json out;
        out.kind = Json::Kind::integer;
        if (at_ + 1 < text_.size() && peek() == '.' && text_[at_ + 1] >= '0' && text_[at_ + 1] <= '9') {
            ++at_;
            digits();
            out.kind = Json::Kind::real;
        }
        if (peek() == 'e' || peek() == 'E') {
            const size_t before = at_++;
            if (peek() == '+' || peek() == '-') ++at_;
            if (digits() > 0)
                out.kind = Json::Kind::real;
            else
                at_ = before;  // an 'e' behind a number is then text behind a value
        }
        if (out.kind == Json::Kind::integer && whole > kMaxDigits)
            throw JsonError("cannot be used: it holds an integer of " + std::to_string(whole) + " digits");
        const char *begin = text_.data() + from, *end = text_.data() + at_;
        const bool negative = *begin == '-';
        if (std::from_chars(begin, end, out.real).ec == std::errc::result_out_of_range)
            // Too large, or so small that it is 0: the digits before the point tell.
            out.real = std::strtod(std::string(begin, end).c_str(), nullptr);
        if (out.kind == Json::Kind::integer) {
            if (std::from_chars(begin, end, out.integer).ec != std::errc{})
                out.integer = negative ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max();
        } else if (!(out.real > -1e300 && out.real < 1e300)) {
            throw JsonError("cannot be used: " + shown({begin, end}) + " is not a finite number");
        }
        return out;
    }

    std::string_view text_;
    size_t at_ = 0;
};

}  // namespace

const Json *Json::find(std::string_view key) const {
    for (const auto &[name, value] : members)
        if (name == key) return &value;
    return nullptr;
}

Json parse_json(std::string_view text) { return Parser(text).document(); }

char32_t next_code_point(std::string_view text, size_t &at) {
    const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[at + i])); };
    const char32_t first = byte(0);
    const size_t length = first < 0x80 ? 1 : first < 0xe0 ? 2
                                         : first < 0xf0   ? 3
                                                          : 4;
    char32_t out = length == 1 ? first : first & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; ++i) out = out << 6 | (byte(i) & 0x3f);
    at += length;
    return out;
}

size_t find_invalid_utf8(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
        const auto first = static_cast<unsigned char>(text[at]);
        const size_t length = first < 0x80 ? 1 : first < 0xc2 ? 0
                                             : first < 0xe0   ? 2
                                             : first < 0xf0   ? 3
                                             : first < 0xf5   ? 4
                                                              : 0;
        if (length == 0 || at + length > text.size()) return at;
        for (size_t i = 1; i < length; ++i)
            if ((static_cast<unsigned char>(text[at + i]) & 0xc0) != 0x80) return at;
        size_t end = at;
        const char32_t c = next_code_point(text, end);
        constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
        if (c < kSmallest[length] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return at;
        at = end;
    }
    return std::string_view::npos;
}

std::string shown(std::string_view text) {
    std::string out;
    for (size_t at = 0; at < text.size() && out.size() <= 60;) {
        const char32_t c = next_code_point(text, at);
        char escape[11];
        std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
        out += c >= 0x20 && c < 0x7f ? std::string(1, static_cast<char>(c)) : escape;
    }
    return out.size() <= 60 ? out : out.substr(0, 57) + "...";
}

}  // namespace vosrt
