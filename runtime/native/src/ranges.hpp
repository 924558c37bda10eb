// What numbers among the options of propagation may be: runtime/src/vosrt/propagation_ranges.txt, which Python reads too.
#pragma once

#include <concepts>
#include <string>

#include "error.hpp"

namespace vosrt {

struct Range {
    const char *name;
    double lowest, highest;
    bool above;        // `lowest` itself is left out
    const char *text;  // the same in words

    // NaN never does. As fp32, where callers give fp32: 0.1f is not 0.1.
    bool holds(float value) const {
        const auto low = static_cast<float>(lowest);
        return value >= low && value <= static_cast<float>(highest) && !(above && value == low);
    }
    bool holds(double value) const { return value >= lowest && value <= highest && !(above && value == lowest); }
    bool holds(std::integral auto value) const { return holds(static_cast<double>(value)); }

    // The value, or an error of the C API.
    template <class T>
    T check(T value) const {
        if (!holds(value)) refuse(std::to_string(value));
        return value;
    }

   private:
    [[noreturn]] void refuse(const std::string &value) const {
        invalid(std::string(name) + " is " + value + "; expected " + text);
    }
};

}  // namespace vosrt

#include "propagation_ranges.hpp"
