// Calls of one plugin in one execution context: what is made once, before the first, and used by all.
#pragma once

#include <memory>
#include <string>

#include "tensorrt/plugin_core.h"

namespace fdpp::trt {

class Calls {
 public:
  // On the current GPU. `layer` names the plugin's layer in fdpp::last_plans().
  Status open(std::shared_ptr<const PluginCore> core, const std::string& layer);
  // 0 stands for our own choice.
  Status set_tactic(int32_t number);
  Status run(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
             const void* const* inputs, void* const* outputs, void* workspace, void* stream) const;

 private:
  std::shared_ptr<const PluginCore> core_;
  DeviceInfo device_;
  mutable DeviceFault fault_;
  PlanSlot* slot_ = nullptr;
  const std::string* variant_ = nullptr;
};

}  // namespace fdpp::trt
