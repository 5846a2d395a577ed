#include "tensorrt/plugin_v2.h"

#include <cstring>

// Late versions of 8 call their own interface deprecated.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace fdpp::trt {
namespace {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

std::vector<TensorView> views_of(const PluginTensorDesc* descs, int count) {
  std::vector<TensorView> views;
  for (int i = 0; i < count; ++i) views.push_back(view_of(descs[i], nullptr));
  return views;
}

class Plugin final : public nvinfer1::IPluginV2DynamicExt {
 public:
  Plugin(std::shared_ptr<const PluginCore> core, std::string layer)
      : core_(std::move(core)), layer_(std::move(layer)) {}

  // ---- IPluginV2
  const char* getPluginType() const noexcept override { return core_->spec().name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  int32_t getNbOutputs() const noexcept override { return core_->outputs(); }
  int32_t initialize() noexcept override {
    return status_code([&]() -> Status {
      auto calls = std::make_unique<Calls>();
      FDPP_RETURN_IF_ERROR(calls->open(core_, layer_));
      calls_ = std::move(calls);
      return {};
    });
  }
  void terminate() noexcept override { calls_.reset(); }
  size_t getSerializationSize() const noexcept override {
    bytes_.clear();
    guarded([&]() -> Status {
      bytes_ = core_->serialised().serialise();
      return {};
    });
    return bytes_.size();
  }
  // As many as TensorRT was told last, whatever has been asked of the plugin since.
  void serialize(void* buffer) const noexcept override { std::memcpy(buffer, bytes_.data(), bytes_.size()); }
  void destroy() noexcept override { delete this; }
  void setPluginNamespace(const char*) noexcept override {}
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  // ---- IPluginV2Ext
  nvinfer1::DataType getOutputDataType(int32_t output, const nvinfer1::DataType* inputs,
                                       int32_t count) const noexcept override {
    nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;
    guarded([&]() -> Status {
      std::vector<DType> types;
      for (int i = 0; i < count; ++i) types.push_back(from_trt(inputs[i]));
      type = to_trt(core_->output_type(output, types.data()));
      return {};
    });
    return type;
  }

  // ---- IPluginV2DynamicExt
  nvinfer1::IPluginV2DynamicExt* clone() const noexcept override {
    Plugin* made = nullptr;
    const bool whole = guarded([&]() -> Status {
      made = new Plugin(core_, layer_);
      // A context's plugin is a clone of the engine's, which was initialised.
      return calls_ == nullptr || made->initialize() == 0 ? Status() : device_error("a plugin cannot be cloned");
    });
    if (whole) return made;
    delete made;
    return nullptr;
  }
  nvinfer1::DimsExprs getOutputDimensions(int32_t output, const nvinfer1::DimsExprs* inputs, int32_t count,
                                          nvinfer1::IExprBuilder& builder) noexcept override {
    nvinfer1::DimsExprs shape{};
    guarded([&]() -> Status {
      FDPP_RETURN_IF_ERROR(core_->check_counts(count, core_->outputs()));
      shape = core_->output_shape(output, inputs, builder);
      return {};
    });
    return shape;
  }
  bool supportsFormatCombination(int32_t at, const PluginTensorDesc* tensors, int32_t input_count,
                                 int32_t output_count) noexcept override {
    bool takes = false;
    guarded([&]() -> Status {
      FDPP_RETURN_IF_ERROR(core_->check_counts(input_count, output_count));
      std::vector<DType> types;
      for (int i = 0; i <= at; ++i) types.push_back(from_trt(tensors[i].type));
      takes = tensors[at].format == nvinfer1::TensorFormat::kLINEAR && core_->takes(at, types.data());
      return {};
    });
    return takes;
  }
  void configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t count, const DynamicPluginTensorDesc*,
                       int32_t) noexcept override {
    // Without a result: what is wrong is said here, and enqueue() fails.
    guarded([&]() -> Status {
      std::vector<TensorView> largest;
      for (int i = 0; i < count; ++i) largest.push_back(view_of(inputs[i].desc, inputs[i].max, nullptr));
      return core_->check(largest.data());
    });
  }
  size_t getWorkspaceSize(const PluginTensorDesc* inputs, int32_t count, const PluginTensorDesc*,
                          int32_t) const noexcept override {
    size_t bytes = 0;
    guarded([&]() -> Status {
      DeviceInfo device;
      FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
      return core_->workspace_bytes(views_of(inputs, count).data(), device, &bytes);
    });
    return bytes;
  }
  int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return status_code([&]() -> Status {
      if (calls_ == nullptr) return not_supported(std::string(core_->spec().name) + ": it was not initialised");
      return calls_->run(input_descs, output_descs, inputs, outputs, workspace, stream);
    });
  }

 private:
  template <typename Body>
  static int32_t status_code(Body body) noexcept {
    return guarded(body) ? 0 : -1;
  }

  std::shared_ptr<const PluginCore> core_;
  std::string layer_;
  mutable std::string bytes_;
  std::unique_ptr<Calls> calls_;
};

class Creator final : public nvinfer1::IPluginCreator {
 public:
  explicit Creator(const OpSpec& spec) : spec_(spec), fields_(collection_of(field_names(spec))) {}

  const char* getPluginName() const noexcept override { return spec_.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }
  nvinfer1::IPluginV2* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* given) noexcept override {
    return create(name, [&](Fields* fields) { return fields->read(spec_, given); });
  }
  nvinfer1::IPluginV2* deserializePlugin(const char* name, const void* data, size_t size) noexcept override {
    return create(name, [&](Fields* fields) { return fields->read(spec_, data, size); });
  }
  void setPluginNamespace(const char*) noexcept override {}
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

 private:
  template <typename Read>
  nvinfer1::IPluginV2* create(const char* name, Read read) noexcept {
    nvinfer1::IPluginV2* made = nullptr;
    guarded([&]() -> Status {
      Fields fields;
      FDPP_RETURN_IF_ERROR(read(&fields));
      std::shared_ptr<const PluginCore> core;
      FDPP_RETURN_IF_ERROR(PluginCore::create(spec_, std::move(fields), &core));
      made = new Plugin(std::move(core), name != nullptr ? name : "");
      return {};
    });
    return made;
  }

  const OpSpec& spec_;
  const nvinfer1::PluginFieldCollection fields_;
};

}  // namespace

const std::vector<nvinfer1::IPluginCreator*>& creators_v2() {
  static Creator attention(attention_spec()), gemm(gemm_spec());
  static const std::vector<nvinfer1::IPluginCreator*> creators = {&attention, &gemm};
  return creators;
}

}  // namespace fdpp::trt
