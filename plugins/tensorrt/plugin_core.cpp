#include "tensorrt/plugin_core.h"

#include <charconv>
#include <cstring>

#include "tensorrt/version.h"

namespace fdpp::trt {
namespace {

bool is(const char* a, const char* b) { return std::strcmp(a, b) == 0; }

DType dtype_named(const char* name) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::i32, DType::i64, DType::u8, DType::i8})
    if (is(name, dtype_name(dtype))) return dtype;
  return DType::undefined;
}

// Whether the GPU's kernels take these types of the variables T and C, of which the second may be undefined yet.
bool has_signature(const OpSpec& spec, DType t, DType c) {
  for (const OpSignature& signature : spec.signatures) {
    if (!is(signature.backend, "cuda")) continue;
    bool fits = true;
    for (const TypeBinding& binding : signature.types) {
      if (is(binding.variable, "T")) fits = fits && dtype_named(binding.type) == t;
      if (is(binding.variable, "C") && c != DType::undefined) fits = fits && dtype_named(binding.type) == c;
    }
    if (fits) return true;
  }
  return false;
}

}  // namespace

Status PluginCore::create(const OpSpec& spec, Fields fields, std::shared_ptr<const PluginCore>* core) {
  std::unique_ptr<PluginCore> made =
      &spec == &attention_spec() ? make_attention_core(std::move(fields)) : make_gemm_core(std::move(fields));
  std::string names, workspace, chosen = "heuristic";
  FDPP_RETURN_IF_ERROR(made->fields_.attribute(kDenseAttribute, &names));
  FDPP_RETURN_IF_ERROR(made->dense_.parse(spec, names));
  FDPP_RETURN_IF_ERROR(made->fields_.attribute(kTacticsField, &chosen));
  if (chosen != "heuristic" && chosen != "timed")
    return invalid_argument(std::string(spec.name) + ": tactics is \"" + chosen + "\", expected heuristic or timed");
  made->timed_ = chosen == "timed";
  FDPP_RETURN_IF_ERROR(made->fields_.attribute(kWorkspaceField, &workspace));
  if (!workspace.empty()) {
    const char* const end = workspace.data() + workspace.size();
    const auto [at, error] = std::from_chars(workspace.data(), end, made->given_workspace_.emplace());
    if (error != std::errc() || at != end)
      return invalid_argument(std::string(spec.name) + ": workspace is \"" + workspace + "\", expected a number of bytes");
  }
  FDPP_RETURN_IF_ERROR(made->read());
  made->timing_id_ = std::string("fdpp ") + kLibraryVersion;
  for (const nvinfer1::PluginField& field : made->fields_.collection()) {
    made->timing_id_ += std::string(" ") + field.name + "=";
    if (field.type == nvinfer1::PluginFieldType::kCHAR)
      made->timing_id_.append(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
    else if (field.type == nvinfer1::PluginFieldType::kFLOAT32)
      made->timing_id_ += std::to_string(*static_cast<const float*>(field.data));
    else
      made->timing_id_ += std::to_string(*static_cast<const int32_t*>(field.data));
  }
  *core = std::move(made);
  return {};
}

Fields PluginCore::serialised() const {
  Fields fields = fields_;
  const int64_t asked = asked_workspace_.load();
  if (!given_workspace_ && asked >= 0) fields.add_text(kWorkspaceField, std::to_string(asked));
  return fields;
}

Status PluginCore::workspace_bytes(const TensorView* largest, const DeviceInfo& device, size_t* bytes) const {
  FDPP_RETURN_IF_ERROR(largest_workspace(largest, device, bytes));
  const auto now = static_cast<int64_t>(*bytes);
  int64_t asked = asked_workspace_.load();
  while (asked < now && !asked_workspace_.compare_exchange_weak(asked, now)) {
  }
  return {};
}

Status PluginCore::check_counts(int inputs, int outputs) const {
  if (inputs == this->inputs() && outputs == this->outputs()) return {};
  return invalid_argument(std::string(spec_.name) + ": a layer of " + std::to_string(inputs) + " inputs and " +
                          std::to_string(outputs) + " outputs, but field inputs names " +
                          std::to_string(this->inputs()) + " and the op has " + std::to_string(this->outputs()) +
                          " outputs");
}

bool PluginCore::takes(int at, const DType* types) const {
  const DType type = types[at];
  if (type == DType::undefined) return false;
  if (at >= inputs()) return type == output_type(at - inputs(), types);
  const int input = dense_.input(at);
  const PortSpec& port = spec_.inputs[static_cast<size_t>(input)];
  if (const DType fixed = fixed_type(input); fixed != DType::undefined) return type == fixed;
  if (input == kAttnTotalSequenceLength && &spec_ == &attention_spec())
    return type == DType::i32 || type == DType::i64;  // its extent is all that is read
  if (at == 0) return has_signature(spec_, type, DType::undefined);
  if (is(port.type, "T")) return type == types[0];
  if (is(port.type, "C")) {
    const int first = dense_.find(kAttnPastKey);
    return at == first ? has_signature(spec_, types[0], type) : type == types[first];
  }
  return type == dtype_named(port.type);
}

DType PluginCore::output_type(int output, const DType* input_types) const {
  const int past = &spec_ == &attention_spec() ? dense_.find(kAttnPastKey) : -1;
  return output > 0 && past >= 0 ? input_types[past] : input_types[0];
}

int PluginCore::aliased_input(int output) const {
  for (const InPlace& pair : spec_.in_place)
    if (pair.output == output) return dense_.find(pair.input);
  return -1;
}

const std::vector<Tactic>& tactics(const OpSpec& spec) {
  return kept_for<std::vector<Tactic>>(spec, [](const OpSpec& op) {
    std::vector<Tactic> tactics;
    for (const VariantInfo& v : list_variants()) {
      if (v.op != op.name || v.backend != Backend::cuda) continue;
      uint32_t hash = 2166136261u;  // FNV-1a
      for (char c : v.name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
      tactics.push_back({static_cast<int32_t>(hash >> 2) + 1, v.name});
    }
    return tactics;
  });
}

}  // namespace fdpp::trt
