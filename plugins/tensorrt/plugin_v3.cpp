#include "tensorrt/plugin_v3.h"

namespace fdpp::trt {
namespace {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

// Buffers that outputs share with inputs came with 10.3's builder; before, present is another buffer and past is copied.
#if NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 3)
using BuildInterface = nvinfer1::IPluginV3OneBuildV2;
#define FDPP_TRT_ALIASES override
#else
using BuildInterface = nvinfer1::IPluginV3OneBuild;
#define FDPP_TRT_ALIASES
#endif

std::vector<TensorView> largest_of(const DynamicPluginTensorDesc* descs, int count) {
  std::vector<TensorView> views;
  for (int i = 0; i < count; ++i) views.push_back(view_of(descs[i].desc, descs[i].max, nullptr));
  return views;
}

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public BuildInterface,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(std::shared_ptr<const PluginCore> core, std::string layer) : core_(std::move(core)), layer_(std::move(layer)) {}

  // ---- IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<BuildInterface*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  nvinfer1::IPluginV3* clone() noexcept override {
    nvinfer1::IPluginV3* made = nullptr;
    guarded([&]() -> Status {
      made = new Plugin(core_, layer_);
      return {};
    });
    return made;
  }

  // ---- core
  const char* getPluginName() const noexcept override { return core_->spec().name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  // ---- build
  int32_t getNbOutputs() const noexcept override { return core_->outputs(); }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t count, const nvinfer1::DataType* inputs,
                             int32_t input_count) const noexcept override {
    return status_code([&]() -> Status {
      FDPP_RETURN_IF_ERROR(core_->check_counts(input_count, count));
      std::vector<DType> types;
      for (int i = 0; i < input_count; ++i) types.push_back(from_trt(inputs[i]));
      for (int i = 0; i < count; ++i) outputs[i] = to_trt(core_->output_type(i, types.data()));
      return {};
    });
  }
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t count,
                          nvinfer1::IExprBuilder& builder) noexcept override {
    return status_code([&]() -> Status {
      FDPP_RETURN_IF_ERROR(core_->check_counts(input_count, count));
      for (int i = 0; i < count; ++i) outputs[i] = core_->output_shape(i, inputs, builder);
      return {};
    });
  }
  bool supportsFormatCombination(int32_t at, const DynamicPluginTensorDesc* tensors, int32_t input_count,
                                 int32_t output_count) noexcept override {
    bool takes = false;
    guarded([&]() -> Status {
      FDPP_RETURN_IF_ERROR(core_->check_counts(input_count, output_count));
      std::vector<DType> types;
      for (int i = 0; i <= at; ++i) types.push_back(from_trt(tensors[i].desc.type));
      takes = tensors[at].desc.format == nvinfer1::TensorFormat::kLINEAR && core_->takes(at, types.data());
      return {};
    });
    return takes;
  }
  int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count, const DynamicPluginTensorDesc*,
                          int32_t output_count) noexcept override {
    return status_code([&]() -> Status {
      FDPP_RETURN_IF_ERROR(core_->check_counts(input_count, output_count));
      return core_->check(largest_of(inputs, input_count).data());
    });
  }
  size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count, const DynamicPluginTensorDesc*,
                          int32_t) const noexcept override {
    size_t bytes = 0;
    guarded([&]() -> Status {
      DeviceInfo device;
      FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
      return core_->workspace_bytes(largest_of(inputs, input_count).data(), device, &bytes);
    });
    return bytes;
  }
  int32_t getNbTactics() noexcept override {
    return core_->timed() ? static_cast<int32_t>(tactics(core_->spec()).size()) : 0;
  }
  int32_t getValidTactics(int32_t* numbers, int32_t count) noexcept override {
    for (int i = 0; i < count; ++i) numbers[i] = tactics(core_->spec())[static_cast<size_t>(i)].number;
    return 0;
  }
  const char* getTimingCacheID() noexcept override { return core_->timing_id().c_str(); }
  int32_t getAliasedInput(int32_t output) noexcept FDPP_TRT_ALIASES { return core_->aliased_input(output); }

  // ---- runtime
  int32_t setTactic(int32_t number) noexcept override {
    tactic_ = number;
    return status_code([&] { return calls_ != nullptr ? calls_->set_tactic(number) : Status(); });
  }
  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc*,
                        int32_t output_count) noexcept override {
    return status_code([&]() -> Status {
      FDPP_RETURN_IF_ERROR(core_->check_counts(input_count, output_count));
      std::vector<TensorView> views;
      for (int i = 0; i < input_count; ++i) views.push_back(view_of(inputs[i], nullptr));
      return core_->check(views.data());
    });
  }
  int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return status_code([&]() -> Status {
      if (calls_ == nullptr) FDPP_RETURN_IF_ERROR(make_ready());  // the builder times plugins without a context
      return calls_->run(input_descs, output_descs, inputs, outputs, workspace, stream);
    });
  }
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    Plugin* made = nullptr;
    const bool ready = guarded([&]() -> Status {
      made = new Plugin(core_, layer_);
      made->tactic_ = tactic_;
      return made->make_ready();
    });
    if (ready) return made;
    delete made;
    return nullptr;
  }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
    const bool whole = guarded([&]() -> Status {
      serialised_ = core_->serialised();
      fields_ = serialised_.collection();
      collection_ = collection_of(fields_);
      return {};
    });
    return whole ? &collection_ : nullptr;
  }

 private:
  template <typename Body>
  static int32_t status_code(Body body) noexcept {
    return guarded(body) ? 0 : -1;
  }
  Status make_ready() {
    auto calls = std::make_unique<Calls>();
    FDPP_RETURN_IF_ERROR(calls->open(core_, layer_));
    FDPP_RETURN_IF_ERROR(calls->set_tactic(tactic_));
    calls_ = std::move(calls);
    return {};
  }

  std::shared_ptr<const PluginCore> core_;
  std::string layer_;
  Fields serialised_;  // what the collection that TensorRT was handed points into
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
  int32_t tactic_ = 0;
  std::unique_ptr<Calls> calls_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const OpSpec& spec) : spec_(spec), fields_(collection_of(field_names(spec))) {}

  const char* getPluginName() const noexcept override { return spec_.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* given,
                                    nvinfer1::TensorRTPhase) noexcept override {
    nvinfer1::IPluginV3* made = nullptr;
    guarded([&]() -> Status {
      Fields fields;
      FDPP_RETURN_IF_ERROR(fields.read(spec_, given));
      std::shared_ptr<const PluginCore> core;
      FDPP_RETURN_IF_ERROR(PluginCore::create(spec_, std::move(fields), &core));
      made = new Plugin(std::move(core), name != nullptr ? name : "");
      return {};
    });
    return made;
  }

 private:
  const OpSpec& spec_;
  const nvinfer1::PluginFieldCollection fields_;
};

}  // namespace

const std::vector<nvinfer1::IPluginCreatorInterface*>& creators_v3() {
  static Creator attention(attention_spec()), gemm(gemm_spec());
  static const std::vector<nvinfer1::IPluginCreatorInterface*> creators = {&attention, &gemm};
  return creators;
}

}  // namespace fdpp::trt
