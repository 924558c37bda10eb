// What a manifest may hold: the table runtime/src/vosrt/bundle/schema.txt.
#pragma once

#include <string>

#include "json.hpp"

namespace vosrt {

// Throws Error(VOSRT_INVALID_BUNDLE) unless the document holds what the table says, and nothing else.
void check_document(const Json &document, const std::string &where);

}  // namespace vosrt
