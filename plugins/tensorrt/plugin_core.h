// What a plugin is, whatever version of TensorRT's interface stands in front of it: the op's attributes, its types, shapes and
// workspace, and its work. The shells (plugin_v3.h, plugin_v2.h) only translate calls.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fdpp/dense.h"
#include "fdpp/device.h"
#include "fdpp/dispatch.h"
#include "fdpp/op_spec.h"
#include "tensorrt/fields.h"
#include "tensorrt/trt.h"

namespace fdpp::trt {

// What one execution context has of its own.
struct CallState {
  const DeviceInfo* device = nullptr;
  const std::string* variant = nullptr;  // the tactic that TensorRT chose; null: ours
  DeviceFault* fault = nullptr;          // of attention
  PlanSlot* slot = nullptr;
};

// Contexts and threads share it: nothing changes but the workspace that a builder has asked for. Tensors are those of the
// dense form (fdpp/dense.h), inputs before outputs.
class PluginCore {
 public:
  static Status create(const OpSpec& spec, Fields fields, std::shared_ptr<const PluginCore>* core);
  virtual ~PluginCore() = default;

  const OpSpec& spec() const { return spec_; }
  // What an engine stores.
  Fields serialised() const;
  int inputs() const { return dense_.count(); }
  int outputs() const { return static_cast<int>(spec_.outputs.size()); }
  Status check_counts(int inputs, int outputs) const;  // of a layer's tensors
  // Whether TensorRT's own timing chooses among our variants (tactics "timed"), or our tables ("heuristic").
  bool timed() const { return timed_; }
  const std::string& timing_id() const { return timing_id_; }  // of what an engine's timings hold for

  // Whether tensor `at` may be of types[at], the ones before it being given. All are linear.
  bool takes(int at, const DType* types) const;
  DType output_type(int output, const DType* input_types) const;
  virtual nvinfer1::DimsExprs output_shape(int output, const nvinfer1::DimsExprs* inputs,
                                           nvinfer1::IExprBuilder& builder) const = 0;
  // The input whose buffer the output should share, or -1.
  int aliased_input(int output) const;

  // `largest`: input tensors of the largest shapes that a profile has. Errors name what no kernel takes.
  virtual Status check(const TensorView* largest) const = 0;
  // What every call of up to these shapes needs at most. The plugin that is serialised may be a clone of the one that was
  // asked: all of them share what was said.
  Status workspace_bytes(const TensorView* largest, const DeviceInfo& device, size_t* bytes) const;
  virtual Status run(const TensorView* inputs, const TensorView* outputs, void* workspace, void* stream,
                     const CallState& state) const = 0;

 protected:
  PluginCore(const OpSpec& spec, Fields fields) : spec_(spec), fields_(std::move(fields)) {}
  virtual Status read() = 0;                       // the op's attributes
  virtual DType fixed_type(int input) const = 0;   // of an input of the op whose type the dense form gives; else undefined
  virtual Status largest_workspace(const TensorView* largest, const DeviceInfo& device, size_t* bytes) const = 0;
  const DenseInputs& dense() const { return dense_; }
  const Fields& fields() const { return fields_; }

  // A plan by plan_with(variant, &plan), `variant` empty for our own choice: of the tactic that TensorRT chose; if that
  // does not take the shapes, for it was timed at one shape of the profile, ours; if that wants more workspace than the
  // engine gives, for the engine was built beside another table or another cuBLASLt, of any variant that makes do.
  template <typename Plan, typename PlanWith>
  Status plan_call(const CallState& state, const PlanWith& plan_with, Plan* plan) const;

 private:
  const OpSpec& spec_;
  Fields fields_;
  DenseInputs dense_;
  bool timed_ = false;
  std::optional<size_t> given_workspace_;             // by the engine
  mutable std::atomic<int64_t> asked_workspace_{-1};  // of the builder, most so far; -1: nothing yet
  std::string timing_id_;
};

std::unique_ptr<PluginCore> make_attention_core(Fields fields);
std::unique_ptr<PluginCore> make_gemm_core(Fields fields);

// Names of the op's GPU variants and, from 1 on, the numbers that stand for them in an engine: those of a variant stay the
// same while others come and go.
struct Tactic {
  int32_t number;
  std::string variant;
};
const std::vector<Tactic>& tactics(const OpSpec& spec);

template <typename Plan, typename PlanWith>
Status PluginCore::plan_call(const CallState& state, const PlanWith& plan_with, Plan* plan) const {
  Status planned = not_supported("");
  if (state.variant != nullptr) planned = plan_with(*state.variant, plan);
  if (planned.code() == StatusCode::not_supported) planned = plan_with("", plan);
  const auto fits = [&] { return !given_workspace_ || plan->workspace_bytes <= *given_workspace_; };
  if (!planned.ok() || fits()) return planned;
  const size_t wanted = plan->workspace_bytes;
  for (const Tactic& tactic : tactics(spec_))
    if (plan_with(tactic.variant, plan).ok() && fits()) return {};
  return not_supported(std::string(spec_.name) + ": these shapes need " + std::to_string(wanted) +
                       " bytes of workspace, the engine was built to give " + std::to_string(*given_workspace_) +
                       "; build the engine anew on this machine");
}

}  // namespace fdpp::trt
