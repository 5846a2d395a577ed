// What TensorRT looks for in a plugin library. Both lists are there for every version, so that a TensorRT that this library
// was not built for is told so.
#include "tensorrt/trt.h"
#include "tensorrt/version.h"
#if NV_TENSORRT_MAJOR >= 10
#include "tensorrt/plugin_v3.h"
#else
#include "tensorrt/plugin_v2.h"
#endif

namespace fdpp::trt {
namespace {

bool may_run() {
  return guarded([] { return check_running_version(); });
}

template <typename Creators>
auto hand_over(const Creators& creators, int32_t& count) -> decltype(creators.data()) {
  if (!may_run()) return count = 0, nullptr;
  count = static_cast<int32_t>(creators.size());
  return creators.data();
}

}  // namespace
}  // namespace fdpp::trt

extern "C" FDPP_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { fdpp::trt::set_logger_finder(finder); }

#if NV_TENSORRT_MAJOR >= 10
extern "C" FDPP_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  return fdpp::trt::hand_over(fdpp::trt::creators_v3(), count);
}
extern "C" FDPP_API void* const* getPluginCreators(int32_t& count) {
  fdpp::trt::may_run();
  count = 0;
  return nullptr;
}
#else
extern "C" FDPP_API nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
  return fdpp::trt::hand_over(fdpp::trt::creators_v2(), count);
}
#endif
