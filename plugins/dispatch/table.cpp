#include "dispatch/table.h"

namespace fdpp {

GemmInflection gemm_inflection(const GemmProblem& problem, const DeviceInfo& device) {
  if (device.backend == Backend::cpu) {
    // Beyond 16 rows the runtime's blocked product wins over kernels that stream B once for every 16 rows.
    return {2, 17, "first table: cpu"};
  }
  // The paper's typical values for GPUs: gemv loses to tensor cores from the second or third row on.
  const int64_t m1 = problem.n >= 2 * problem.k ? 2 : 3;
  return {m1, 65, "first table: gpu"};
}

}  // namespace fdpp
