// Tables that fdpp-tune measured on GPUs, part of the library: plugins/dispatch/tables/*.json, as cmake/ShippedTables.cmake
// puts them in.
#pragma once

#include <string_view>
#include <vector>

namespace fdpp {

struct ShippedTable {
  const char* name;  // as a plan's reason has it
  std::string_view text;
};

const std::vector<ShippedTable>& shipped_tables();

}  // namespace fdpp
