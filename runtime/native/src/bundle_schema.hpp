// What a manifest may hold: the table runtime/src/vosrt/bundle/schema.txt, which Python reads too.
#pragma once

#include <string>
#include <string_view>

#include "json.hpp"

namespace vosrt {

// Throws Error(VOSRT_INVALID_BUNDLE) unless the document holds what the table says, and nothing else.
void check_document(const Json &document, const std::string &where);

// Text from a file as it may be printed: ASCII on one line, cut where it is long.
std::string shown(std::string_view text);

}  // namespace vosrt
