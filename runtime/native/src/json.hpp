// A strict JSON reader (RFC 8259) for manifests: no duplicate keys, no numbers that are not finite.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace vosrt {

struct JsonError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Json {
    enum class Kind {
        null,
        boolean,
        integer,
        real,
        text,
        array,
        object
    };
    struct Member;

    Kind kind = Kind::null;
    bool boolean = false;
    int64_t integer = 0;  // saturated; `real` has the magnitude of larger ones
    double real = 0.0;    // of integers too
    std::string text;     // UTF-8, lone surrogates as three bytes each
    std::vector<Json> items;
    std::vector<Member> members;
    std::string_view source;  // as it stands in the text that was parsed

    const Json *find(std::string_view key) const;
};

struct Json::Member {
    std::string key;
    Json value;
};

// Throws JsonError with a position or a reason.
Json parse_json(std::string_view text);

// The next code point of text that parse_json or valid_utf8 has seen; advances `at`.
char32_t next_code_point(std::string_view text, size_t &at);
// Position of the first byte that is not UTF-8, or npos.
size_t find_invalid_utf8(std::string_view text);
// Text that parse_json has seen as it may be printed: ASCII on one line, cut where it is long.
std::string shown(std::string_view text);

}  // namespace vosrt
