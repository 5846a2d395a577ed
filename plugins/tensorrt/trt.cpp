#include "tensorrt/trt.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>

namespace fdpp::trt {
namespace {

struct TypePair {
  nvinfer1::DataType theirs;
  DType ours;
};
constexpr TypePair kTypes[] = {
    {nvinfer1::DataType::kFLOAT, DType::f32}, {nvinfer1::DataType::kHALF, DType::f16},
    {nvinfer1::DataType::kINT32, DType::i32}, {nvinfer1::DataType::kINT8, DType::i8},
#if NV_TENSORRT_MAJOR >= 10
    {nvinfer1::DataType::kBF16, DType::bf16}, {nvinfer1::DataType::kINT64, DType::i64},
    {nvinfer1::DataType::kFP8, DType::f8e4m3},
#endif
};

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

DType from_trt(nvinfer1::DataType type) {
  for (const TypePair& pair : kTypes)
    if (pair.theirs == type) return pair.ours;
  return DType::undefined;
}

nvinfer1::DataType to_trt(DType type) {
  for (const TypePair& pair : kTypes)
    if (pair.ours == type) return pair.theirs;
  return nvinfer1::DataType::kFLOAT;
}

TensorView view_of(const nvinfer1::PluginTensorDesc& desc, const nvinfer1::Dims& dims, const void* data) {
  TensorView view;
  view.data = const_cast<void*>(data);
  view.dtype = from_trt(desc.type);
  view.rank = std::max(dims.nbDims, 0);
  std::copy_n(dims.d, view.rank, view.dims);
  return view;
}

void* runtime_symbol(const char* name) noexcept {
  if (void* const symbol = dlsym(RTLD_DEFAULT, name)) return symbol;
  // Python loads libraries without showing their symbols.
  for (const char* file : {"libnvinfer.so.10", "libnvinfer.so.8", "libnvinfer.so.9", "libnvinfer.so.11", "libnvinfer.so",
                           "libtensorrt_rtx.so.1", "libtensorrt_rtx.so"}) {
    void* const library = dlopen(file, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) continue;
    void* const symbol = dlsym(library, name);
    dlclose(library);  // one reference of several
    if (symbol != nullptr) return symbol;
  }
  return nullptr;
}

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder.store(finder); }

void log_error(const std::string& message) noexcept {
  nvinfer1::ILoggerFinder* const finder = logger_finder.load();
  nvinfer1::ILogger* const logger = finder != nullptr ? finder->findLogger() : nullptr;
  if (logger == nullptr) {
    std::fprintf(stderr, "fdpp: %s\n", message.c_str());
    return;
  }
  try {
    logger->log(nvinfer1::ILogger::Severity::kERROR, ("fdpp: " + message).c_str());
  } catch (...) {  // out of memory: then the message alone
    logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
  }
}

}  // namespace fdpp::trt
