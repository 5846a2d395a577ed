// Stands in for TensorRT 10: loads the plugin library, walks a plugin's life in TensorRT's order and keeps what is logged.
// host.py calls it through ctypes. Numbers are those of TensorRT's enumerations; functions that may fail return false, -1 or
// null, and the messages say why.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <list>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

struct Logger : ILogger {
  std::string messages;
  void log(Severity, const char* message) noexcept override { messages += std::string(message) + "\n"; }
};
struct Finder : ILoggerFinder {
  Logger logger;
  ILogger* findLogger() override { return &logger; }
};
Finder finder;
std::string reply;  // what the last function that returns text returned

const char* answer(const std::string& text) {
  reply = text;
  return reply.c_str();
}

IPluginCreatorInterface* const* creators = nullptr;
int32_t creator_count = 0;

IPluginCreatorV3One* creator_of(const char* op) {
  for (int i = 0; i < creator_count; ++i) {
    auto* const creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (std::strcmp(creator->getPluginName(), op) == 0) return creator;
  }
  return nullptr;
}

// Expressions of numbers that are known: the arithmetic of shapes without symbols.
class Number final : public IDimensionExpr, public apiv::VDimensionExpr {
 public:
  explicit Number(int64_t value) : value_(value) { mImpl = this; }
  bool isConstant() const noexcept override { return true; }
  int64_t getConstantValue() const noexcept override { return value_; }
  bool isSizeTensor() const noexcept override { return false; }

 private:
  int64_t value_;
};

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
 public:
  Builder() { mImpl = this; }
  IDimensionExpr const* constant(int64_t value) noexcept override {
    numbers_.emplace_back(value);
    return &numbers_.back();
  }
  IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& a,
                                  IDimensionExpr const& b) noexcept override {
    const int64_t x = a.getConstantValue(), y = b.getConstantValue();
    switch (op) {
      case DimensionOperation::kSUM: return constant(x + y);
      case DimensionOperation::kPROD: return constant(x * y);
      case DimensionOperation::kMAX: return constant(x > y ? x : y);
      case DimensionOperation::kMIN: return constant(x < y ? x : y);
      case DimensionOperation::kSUB: return constant(x - y);
      case DimensionOperation::kFLOOR_DIV: return constant(x / y);
      default: return nullptr;
    }
  }
  IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) noexcept override {
    return nullptr;
  }

 private:
  std::list<Number> numbers_;
};

Dims dims_of(int32_t rank, const int64_t* values) {
  Dims dims{};
  dims.nbDims = rank;
  std::memcpy(dims.d, values, sizeof(int64_t) * static_cast<size_t>(rank));
  return dims;
}

}  // namespace

extern "C" {

struct HostTensor {
  int32_t type, format, rank;
  int64_t least[8], most[8];
};

struct HostField {
  const char* name;
  int32_t type, length;
  const void* data;
};

const char* host_take_messages() {
  const char* const text = answer(finder.logger.messages);
  finder.logger.messages.clear();
  return text;
}

bool host_load(const char* library) {
  void* const handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    finder.logger.messages += dlerror();
    return false;
  }
  const auto set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(handle, "setLoggerFinder"));
  const auto get = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(handle, "getCreators"));
  if (set_finder == nullptr || get == nullptr) return false;
  set_finder(&finder);
  creators = get(creator_count);
  return creator_count > 0;
}

int32_t host_creator_count() { return creator_count; }
// "kind major.minor name version namespace: field type, ..."
const char* host_describe_creator(int32_t i) {
  auto* const creator = static_cast<IPluginCreatorV3One*>(creators[i]);
  const InterfaceInfo info = creator->getInterfaceInfo();
  std::string text = std::string(info.kind) + "|" + creator->getPluginName() + "|" + creator->getPluginVersion() + "|" +
                     creator->getPluginNamespace() + "|";
  const PluginFieldCollection* const fields = creator->getFieldNames();
  for (int f = 0; f < fields->nbFields; ++f)
    text += std::string(f > 0 ? "," : "") + fields->fields[f].name + " " +
            std::to_string(static_cast<int32_t>(fields->fields[f].type));
  return answer(text);
}

IPluginV3* host_create(const char* op, const HostField* given, int32_t count, bool runtime) {
  IPluginCreatorV3One* const creator = creator_of(op);
  if (creator == nullptr) return nullptr;
  std::vector<PluginField> fields;
  for (int i = 0; i < count; ++i)
    fields.emplace_back(given[i].name, given[i].data, static_cast<PluginFieldType>(given[i].type), given[i].length);
  const PluginFieldCollection collection{count, fields.data()};
  return creator->createPlugin("layer", &collection, runtime ? TensorRTPhase::kRUNTIME : TensorRTPhase::kBUILD);
}

static IPluginV3OneBuildV2* build_of(IPluginV3* plugin) {
  return static_cast<IPluginV3OneBuildV2*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}
static IPluginV3OneRuntime* runtime_of(IPluginV3* plugin) {
  return static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}
static IPluginV3OneCore* core_of(IPluginV3* plugin) {
  return static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
}

void host_destroy(IPluginV3* plugin) { delete plugin; }
IPluginV3* host_clone(IPluginV3* plugin) { return plugin->clone(); }
// "name|version|namespace|capabilities"
const char* host_describe(IPluginV3* plugin) {
  IPluginV3OneCore* const core = core_of(plugin);
  return answer(std::string(core->getPluginName()) + "|" + core->getPluginVersion() + "|" + core->getPluginNamespace() +
                "|" + core->getInterfaceInfo().kind + "|" + build_of(plugin)->getInterfaceInfo().kind + " " +
                std::to_string(build_of(plugin)->getInterfaceInfo().major) + "|" +
                runtime_of(plugin)->getInterfaceInfo().kind);
}

// A plugin out of an engine: what was serialised, through the creator in its runtime phase.
IPluginV3* host_reload(IPluginV3* plugin) {
  IPluginCreatorV3One* const creator = creator_of(core_of(plugin)->getPluginName());
  // Fields are copied into the engine: nothing of the old plugin stays.
  const PluginFieldCollection* const given = runtime_of(plugin)->getFieldsToSerialize();
  std::list<std::string> names, values;
  std::vector<PluginField> fields;
  for (int i = 0; i < given->nbFields; ++i) {
    const PluginField& f = given->fields[i];
    const size_t size = f.type == PluginFieldType::kCHAR ? 1 : 4;
    names.emplace_back(f.name);
    values.emplace_back(static_cast<const char*>(f.data), size * static_cast<size_t>(f.length));
    fields.emplace_back(names.back().c_str(), values.back().data(), f.type, f.length);
  }
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return creator->createPlugin("layer", &collection, TensorRTPhase::kRUNTIME);
}
const char* host_serialised(IPluginV3* plugin) {
  const PluginFieldCollection* const given = runtime_of(plugin)->getFieldsToSerialize();
  std::string text;
  for (int i = 0; i < given->nbFields; ++i) {
    const PluginField& f = given->fields[i];
    text += std::string(f.name) + "=";
    if (f.type == PluginFieldType::kCHAR) text.append(static_cast<const char*>(f.data), static_cast<size_t>(f.length));
    if (f.type == PluginFieldType::kINT32) text += std::to_string(*static_cast<const int32_t*>(f.data));
    if (f.type == PluginFieldType::kFLOAT32) text += std::to_string(*static_cast<const float*>(f.data));
    text += "\n";
  }
  return answer(text);
}

int32_t host_output_count(IPluginV3* plugin) { return build_of(plugin)->getNbOutputs(); }

bool host_output_types(IPluginV3* plugin, const int32_t* inputs, int32_t count, int32_t* outputs, int32_t output_count) {
  std::vector<DataType> in(static_cast<size_t>(count)), out(static_cast<size_t>(output_count));
  for (int i = 0; i < count; ++i) in[static_cast<size_t>(i)] = static_cast<DataType>(inputs[i]);
  if (build_of(plugin)->getOutputDataTypes(out.data(), output_count, in.data(), count) != 0) return false;
  for (int i = 0; i < output_count; ++i) outputs[i] = static_cast<int32_t>(out[static_cast<size_t>(i)]);
  return true;
}

bool host_output_shapes(IPluginV3* plugin, const HostTensor* inputs, int32_t count, HostTensor* outputs,
                        int32_t output_count) {
  Builder builder;
  std::vector<DimsExprs> in(static_cast<size_t>(count)), out(static_cast<size_t>(output_count));
  for (int i = 0; i < count; ++i) {
    in[static_cast<size_t>(i)].nbDims = inputs[i].rank;
    for (int d = 0; d < inputs[i].rank; ++d) in[static_cast<size_t>(i)].d[d] = builder.constant(inputs[i].most[d]);
  }
  if (build_of(plugin)->getOutputShapes(in.data(), count, nullptr, 0, out.data(), output_count, builder) != 0) return false;
  for (int i = 0; i < output_count; ++i) {
    outputs[i].rank = out[static_cast<size_t>(i)].nbDims;
    for (int d = 0; d < outputs[i].rank; ++d) outputs[i].most[d] = out[static_cast<size_t>(i)].d[d]->getConstantValue();
  }
  return true;
}

static std::vector<DynamicPluginTensorDesc> profile_of(const HostTensor* tensors, int32_t count) {
  std::vector<DynamicPluginTensorDesc> descs;
  for (int i = 0; i < count; ++i) {
    const HostTensor& t = tensors[i];
    DynamicPluginTensorDesc desc{};
    desc.min = dims_of(t.rank, t.least);
    desc.opt = desc.max = dims_of(t.rank, t.most);
    desc.desc = {desc.max, static_cast<DataType>(t.type), static_cast<TensorFormat>(t.format), 1.0f};
    for (int d = 0; d < t.rank; ++d)
      if (t.least[d] != t.most[d]) desc.desc.dims.d[d] = -1;
    descs.push_back(desc);
  }
  return descs;
}
static std::vector<PluginTensorDesc> descs_of(const HostTensor* tensors, int32_t count) {
  std::vector<PluginTensorDesc> descs;
  for (int i = 0; i < count; ++i)
    descs.push_back({dims_of(tensors[i].rank, tensors[i].most), static_cast<DataType>(tensors[i].type),
                     static_cast<TensorFormat>(tensors[i].format), 1.0f});
  return descs;
}

// `tensors`: inputs, then outputs.
bool host_supports(IPluginV3* plugin, int32_t at, const HostTensor* tensors, int32_t inputs, int32_t outputs) {
  return build_of(plugin)->supportsFormatCombination(at, profile_of(tensors, inputs + outputs).data(), inputs, outputs);
}
bool host_configure(IPluginV3* plugin, const HostTensor* tensors, int32_t inputs, int32_t outputs) {
  const auto descs = profile_of(tensors, inputs + outputs);
  return build_of(plugin)->configurePlugin(descs.data(), inputs, descs.data() + inputs, outputs) == 0;
}
int64_t host_workspace(IPluginV3* plugin, const HostTensor* tensors, int32_t inputs, int32_t outputs) {
  const auto descs = profile_of(tensors, inputs + outputs);
  return static_cast<int64_t>(build_of(plugin)->getWorkspaceSize(descs.data(), inputs, descs.data() + inputs, outputs));
}
int32_t host_tactics(IPluginV3* plugin, int32_t* numbers, int32_t most) {
  const int32_t count = build_of(plugin)->getNbTactics();
  if (count > most || (count > 0 && build_of(plugin)->getValidTactics(numbers, count) != 0)) return -1;
  return count;
}
const char* host_timing_id(IPluginV3* plugin) { return answer(build_of(plugin)->getTimingCacheID()); }
int32_t host_aliased_input(IPluginV3* plugin, int32_t output) { return build_of(plugin)->getAliasedInput(output); }

bool host_set_tactic(IPluginV3* plugin, int32_t number) { return runtime_of(plugin)->setTactic(number) == 0; }
// The plugin of an execution context.
IPluginV3* host_attach(IPluginV3* plugin) { return runtime_of(plugin)->attachToContext(nullptr); }
bool host_shapes_change(IPluginV3* plugin, const HostTensor* tensors, int32_t inputs, int32_t outputs) {
  const auto descs = descs_of(tensors, inputs + outputs);
  return runtime_of(plugin)->onShapeChange(descs.data(), inputs, descs.data() + inputs, outputs) == 0;
}
bool host_enqueue(IPluginV3* plugin, const HostTensor* tensors, int32_t inputs, int32_t outputs, void* const* data,
                  void* workspace, void* stream) {
  const auto descs = descs_of(tensors, inputs + outputs);
  return runtime_of(plugin)->enqueue(descs.data(), descs.data() + inputs, data, data + inputs, workspace,
                                     static_cast<cudaStream_t>(stream)) == 0;
}

}  // extern "C"
