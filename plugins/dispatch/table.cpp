#include "dispatch/table.h"

namespace fdpp {

GemmInflection gemm_inflection(const DeviceInfo& device) {
  // Up to 16 rows a pass over B serves them all; beyond, the runtime's blocked product wins.
  if (device.backend == Backend::cpu) return {2, 17, "first table: cpu"};
  // Measured on an H200 over Llama-2 and SmolLM2 shapes (benchmarks/bench_gemm.py): in most of them CUDA cores win for
  // one row, tensor cores with tokens padded to 8 up to 24 rows, cuBLASLt from 32 on.
  return {2, 25, "first table: gpu"};
}

}  // namespace fdpp
