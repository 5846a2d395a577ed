// TensorRT that is given this library by mistake finds what it looks for in plugin libraries, and a word.
#include <cstdint>
#include <cstdio>

#include "fdpp/status.h"

namespace {

void* const* no_creators(int32_t& count) {
  std::fputs("fdpp: libfdpp_ort.so is for ONNX Runtime and has no TensorRT plugins; give TensorRT libfdpp_trt.so "
             "(fdpp_ort.tensorrt_library_path())\n", stderr);
  count = 0;
  return nullptr;
}

}  // namespace

extern "C" FDPP_API void setLoggerFinder(void*) {}
extern "C" FDPP_API void* const* getCreators(int32_t& count) { return no_creators(count); }
extern "C" FDPP_API void* const* getPluginCreators(int32_t& count) { return no_creators(count); }
