// What the programs need of TensorRT and CUDA: a logger, errors as exceptions, our plugins in the registry.
#pragma once

#include <NvInfer.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message);
  }
};

class LoggerFinder : public nvinfer1::ILoggerFinder {
 public:
  nvinfer1::ILogger* findLogger() override { return &logger; }
  Logger logger;
};

inline void require(bool done, const std::string& what) {
  if (!done) throw std::runtime_error(what + " failed; see above");
}

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Device memory, zeros at first.
class Buffer {
 public:
  explicit Buffer(size_t bytes) {
    check(cudaMalloc(&data_, bytes > 0 ? bytes : 1), "cudaMalloc");
    check(cudaMemset(data_, 0, bytes), "cudaMemset");
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// `library`: libfdpp_trt.so (fdpp_ort.tensorrt_library_path()).
inline void load_plugins(const std::string& library, LoggerFinder& finder) {
#if NV_TENSORRT_MAJOR >= 10
  require(getPluginRegistry()->loadLibrary(library.c_str()) != nullptr, "loading " + library);
  (void)finder;
#else
  void* const handle = dlopen(library.c_str(), RTLD_NOW);
  if (handle == nullptr) throw std::runtime_error(dlerror());
  const auto set_finder = reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(dlsym(handle, "setLoggerFinder"));
  const auto creators_of =
      reinterpret_cast<nvinfer1::IPluginCreator* const* (*)(int32_t&)>(dlsym(handle, "getPluginCreators"));
  require(set_finder != nullptr && creators_of != nullptr, "finding plugins in " + library);
  set_finder(&finder);
  int32_t count = 0;
  nvinfer1::IPluginCreator* const* const creators = creators_of(count);
  require(count > 0, "loading " + library);
  for (int32_t i = 0; i < count; ++i)
    require(getPluginRegistry()->registerCreator(*creators[i], ""), "registering a plugin");
#endif
}

inline size_t elements(const nvinfer1::Dims& dims) {
  size_t n = 1;
  for (int i = 0; i < dims.nbDims; ++i) n *= static_cast<size_t>(dims.d[i]);
  return n;
}

// Dimensions have 32 bits in TensorRT 8 and 64 later.
inline void append(nvinfer1::Dims& dims, int64_t value) {
  if (dims.nbDims == nvinfer1::Dims::MAX_DIMS) throw std::runtime_error("a shape has too many dimensions");
  dims.d[dims.nbDims++] = static_cast<std::remove_reference_t<decltype(dims.d[0])>>(value);
}

// Calls visit(name, dims) for each of "NAME:1x2x3,NAME:4".
template <typename Visit>
void for_each_shape(const std::string& shapes, const Visit& visit) {
  std::stringstream all(shapes);
  for (std::string shape; std::getline(all, shape, ',');) {
    const size_t colon = shape.rfind(':');
    if (colon == std::string::npos) throw std::runtime_error("\"" + shape + "\" is no NAME:SHAPE");
    nvinfer1::Dims dims{};
    std::stringstream sizes(shape.substr(colon + 1));
    for (std::string size; std::getline(sizes, size, 'x');) append(dims, std::stoll(size));
    visit(shape.substr(0, colon), dims);
  }
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  std::string content(file ? static_cast<size_t>(file.tellg()) : 0, '\0');
  file.seekg(0);
  if (!file.read(content.data(), static_cast<std::streamsize>(content.size())))
    throw std::runtime_error(path + ": cannot be read");
  return content;
}
