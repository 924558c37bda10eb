// Tables that Python reads too, compiled in as text: columns that "|" separates, without comments.
#pragma once

#include <sstream>
#include <string>
#include <vector>

namespace vosrt {

inline std::vector<std::string> split(const std::string &text, char separator) {
    std::vector<std::string> out;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, separator);)
        if (!part.empty()) out.push_back(part);
    return out;
}

// Rows of four columns each; those that a line leaves out are empty.
inline std::vector<std::vector<std::string>> rows_of(const char *table) {
    std::vector<std::vector<std::string>> out;
    for (const std::string &line : split(table, '\n')) {
        if (line[0] == '#') continue;
        std::vector<std::string> columns(4);
        std::istringstream parts(line);
        for (std::string &column : columns) {
            std::getline(parts, column, '|');
            column.erase(0, column.find_first_not_of(' '));
            column.erase(column.find_last_not_of(' ') + 1);
        }
        out.push_back(columns);
    }
    return out;
}

}  // namespace vosrt
