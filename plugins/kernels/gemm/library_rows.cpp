#include <algorithm>
#include <iterator>

#include "fdpp/gemm.h"

namespace fdpp {

int64_t library_rows(int64_t m) {
  constexpr int64_t kRows[] = {8, 16, 24, 32, 48, 64, 96, 128};
  const auto next = std::lower_bound(std::begin(kRows), std::end(kRows), m);
  return next != std::end(kRows) ? *next : (m + 127) / 128 * 128;
}

}  // namespace fdpp
