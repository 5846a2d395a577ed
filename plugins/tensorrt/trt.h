// TensorRT's headers, and its terms in ours. The library is built for one major version: 8 has plugins of IPluginV2DynamicExt,
// 10 and later of IPluginV3.
#pragma once

// Of TensorRT 10 on, what 8 has is deprecated: creators of both are named in one place.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#include <NvInferRuntime.h>
#pragma GCC diagnostic pop

#include <exception>
#include <string>

#include "fdpp/types.h"

namespace fdpp::trt {

inline constexpr const char* kPluginVersion = "1";
inline constexpr const char* kPluginNamespace = "";

DType from_trt(nvinfer1::DataType type);         // undefined: one that no op takes
nvinfer1::DataType to_trt(DType type);           // of types that from_trt() returns
TensorView view_of(const nvinfer1::PluginTensorDesc& desc, const nvinfer1::Dims& dims, const void* data);
inline TensorView view_of(const nvinfer1::PluginTensorDesc& desc, const void* data) {
  return view_of(desc, desc.dims, data);
}

// A function of the TensorRT library that this process has loaded, or null.
void* runtime_symbol(const char* name) noexcept;

// Who knows TensorRT's logger; null: nobody.
void set_logger_finder(nvinfer1::ILoggerFinder* finder);
void log_error(const std::string& message) noexcept;  // through TensorRT's logger, without one to standard error

// Calls `body`, which returns a Status; false, and the message logged, where it fails or throws.
template <typename Body>
bool guarded(Body body) noexcept {
  try {
    const Status status = body();
    if (!status.ok()) log_error(status.message());
    return status.ok();
  } catch (const std::exception& e) {
    log_error(e.what());
  } catch (...) {
    log_error("unknown exception");
  }
  return false;
}

}  // namespace fdpp::trt
