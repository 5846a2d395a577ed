#include "tensorrt/calls.h"

namespace fdpp::trt {
namespace {
constexpr int kMostInputs = kAttnInputCount;
constexpr int kMostOutputs = kAttnOutputCount;
}  // namespace

Status Calls::open(std::shared_ptr<const PluginCore> core, const std::string& layer) {
  core_ = std::move(core);
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device_));
  slot_ = &PlanSlot::of(core_->spec().name, layer);
  return &core_->spec() == &attention_spec() ? fault_.create() : Status();
}

Status Calls::set_tactic(int32_t number) {
  variant_ = nullptr;
  if (number == 0) return {};
  for (const Tactic& tactic : tactics(core_->spec()))
    if (tactic.number == number) variant_ = &tactic.variant;
  if (variant_ != nullptr) return {};
  return not_supported(std::string(core_->spec().name) + ": the engine asks for tactic " + std::to_string(number) +
                       ", which this library does not have; build the engine anew");
}

Status Calls::run(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
                  const void* const* inputs, void* const* outputs, void* workspace, void* stream) const {
  if (slot_ == nullptr) return not_supported(std::string("a plugin runs that no execution context has made ready"));
  TensorView in[kMostInputs], out[kMostOutputs];
  for (int i = 0; i < core_->inputs(); ++i) in[i] = view_of(input_descs[i], inputs[i]);
  for (int i = 0; i < core_->outputs(); ++i) out[i] = view_of(output_descs[i], outputs[i]);
  return core_->run(in, out, workspace, stream, {&device_, variant_, &fault_, slot_});
}

}  // namespace fdpp::trt
