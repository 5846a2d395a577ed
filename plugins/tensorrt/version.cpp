#include "tensorrt/version.h"

#include <string>

#include "tensorrt/trt.h"

namespace fdpp::trt {

Status check_running_version() {
  const auto version = reinterpret_cast<int32_t (*)()>(runtime_symbol("getInferLibVersion"));
  if (version == nullptr) return {};  // linked into its caller
  // The major version times 10000, before 10 times 1000.
  const int number = version(), major = number >= 10000 ? number / 10000 : number / 1000;
  const bool for_rtx = number >= 10000 && major < 10;
  constexpr int kBuiltFor = NV_TENSORRT_MAJOR;
  if (major == kBuiltFor || (for_rtx && kBuiltFor >= 10)) return {};
  return not_supported("this library was built for TensorRT " + std::to_string(kBuiltFor) + ", the one that runs is TensorRT " +
                       (for_rtx ? "for RTX " : "") + std::to_string(major) +
                       "; build fdpp_ort with that version's headers (TENSORRT_ROOT)");
}

}  // namespace fdpp::trt
