// The one file that includes the GPU vendor's headers; a HIP build maps the same names here.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <string>

#include "fdpp/status.h"

namespace fdpp {

inline Status check_gpu(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return device_error(std::string(what) + " failed: " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) + ")");
}

// After a launch: reports a refused launch without waiting for the kernel.
inline Status check_launch(const char* kernel) { return check_gpu(cudaGetLastError(), kernel); }

}  // namespace fdpp

#define FDPP_GPU(call) FDPP_RETURN_IF_ERROR(::fdpp::check_gpu((call), #call))
