// A plugin's fields: the op's attributes, which of its inputs are there, and how TensorRT is to choose among kernels.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "fdpp/op_spec.h"
#include "tensorrt/trt.h"

namespace fdpp::trt {

inline constexpr const char* kTacticsField = "tactics";
// Of serialised plugins alone: what wrote them, and the bytes that the engine gives every call, a decimal number.
inline constexpr const char* kLibraryField = "library";
inline constexpr const char* kWorkspaceField = "workspace";

// made(spec) of each op, made once and kept as long as the library.
template <typename T, typename Make>
const T& kept_for(const OpSpec& spec, const Make& make) {
  static std::mutex mutex;
  static auto* const all = new std::map<const OpSpec*, T>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto at = all->find(&spec);
  return at != all->end() ? at->second : all->emplace(&spec, make(spec)).first->second;
}

// The fields that a creator asks for, in order; names live as long as the library.
struct FieldSpec {
  const char* name;
  AttributeKind kind;
  bool required;
};
const std::vector<FieldSpec>& field_specs(const OpSpec& spec);
const std::vector<nvinfer1::PluginField>& field_names(const OpSpec& spec);

// As TensorRT takes them; points into `fields`.
inline nvinfer1::PluginFieldCollection collection_of(const std::vector<nvinfer1::PluginField>& fields) {
  nvinfer1::PluginFieldCollection collection{};
  collection.nbFields = static_cast<int32_t>(fields.size());
  collection.fields = fields.data();
  return collection;
}

// Values of fields, read from what TensorRT hands over and handed back to be serialised.
class Fields {
 public:
  // invalid_argument: a field that is missing, unknown, of another type than the attribute or not one value.
  Status read(const OpSpec& spec, const nvinfer1::PluginFieldCollection* given);
  // The same out of serialise()'s bytes.
  Status read(const OpSpec& spec, const void* data, size_t size);

  // For read_attributes().
  Status attribute(const char* name, int64_t* out) const;
  Status attribute(const char* name, bool* out) const;
  Status attribute(const char* name, float* out) const;
  Status attribute(const char* name, std::string* out) const;
  void add_text(const char* name, const std::string& text);  // one that is not there; `name` is a constant

  std::string serialise() const;
  // Points into this object.
  std::vector<nvinfer1::PluginField> collection() const;

 private:
  struct Value {
    const char* name = nullptr;
    AttributeKind kind = AttributeKind::text;
    int32_t integer = 0;
    float real = 0;
    std::string text;
  };
  const Value* find(const char* name) const;

  std::vector<Value> values_;
};

}  // namespace fdpp::trt
