#include "tensorrt/fields.h"

#include <cstring>
#include <limits>

#include "fdpp/dense.h"
#include "tensorrt/version.h"

namespace fdpp::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

PluginFieldType type_of(AttributeKind kind) {
  switch (kind) {
    case AttributeKind::integer: return PluginFieldType::kINT32;
    case AttributeKind::real: return PluginFieldType::kFLOAT32;
    case AttributeKind::text: break;
  }
  return PluginFieldType::kCHAR;
}

const char* type_name(AttributeKind kind) {
  return kind == AttributeKind::integer ? "an integer" : kind == AttributeKind::real ? "a float32" : "text";
}

Status bad(const OpSpec& spec, const std::string& what) { return invalid_argument(std::string(spec.name) + ": " + what); }

bool read_integer(const PluginField& field, int64_t* out) {
  if (field.length != 1) return false;
  switch (field.type) {
    case PluginFieldType::kINT32: {
      int32_t value = 0;
      std::memcpy(&value, field.data, sizeof(value));
      *out = value;
      return true;
    }
#if NV_TENSORRT_MAJOR >= 10
    case PluginFieldType::kINT64: std::memcpy(out, field.data, sizeof(*out)); return true;
#endif
    default: return false;
  }
}

// A serialised plugin: this, then for each field its name with a zero, its length in four bytes and its value.
constexpr char kMagic[] = "fdpp1";

}  // namespace

const std::vector<FieldSpec>& field_specs(const OpSpec& spec) {
  return kept_for<std::vector<FieldSpec>>(spec, [](const OpSpec& op) {
    std::vector<FieldSpec> fields;
    for (const AttributeSpec& a : op.attributes) fields.push_back({a.name, a.kind, a.default_value == nullptr});
    fields.push_back({kDenseAttribute, AttributeKind::text, true});
    fields.push_back({kTacticsField, AttributeKind::text, false});
    fields.push_back({kLibraryField, AttributeKind::text, false});
    fields.push_back({kWorkspaceField, AttributeKind::text, false});
    return fields;
  });
}

const std::vector<nvinfer1::PluginField>& field_names(const OpSpec& spec) {
  return kept_for<std::vector<PluginField>>(spec, [](const OpSpec& op) {
    std::vector<PluginField> names;
    for (const FieldSpec& f : field_specs(op)) names.emplace_back(f.name, nullptr, type_of(f.kind), 1);
    return names;
  });
}

Status Fields::read(const OpSpec& spec, const nvinfer1::PluginFieldCollection* given) {
  values_.clear();
  for (int32_t i = 0; given != nullptr && i < given->nbFields; ++i) {
    const PluginField& field = given->fields[i];
    const std::string name = field.name != nullptr ? field.name : "";
    const FieldSpec* known = nullptr;
    for (const FieldSpec& f : field_specs(spec))
      if (name == f.name) known = &f;
    if (known == nullptr) return bad(spec, "field \"" + name + "\" is unknown");
    if (find(known->name) != nullptr) return bad(spec, "field " + name + " is given twice");
    Value value;
    value.name = known->name, value.kind = known->kind;
    int64_t integer = 0;
    bool right = field.data != nullptr && field.length >= 0;
    if (right && known->kind == AttributeKind::text) {
      right = field.type == PluginFieldType::kCHAR;
      // The length counts a closing zero or does not.
      if (right) value.text.assign(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
      value.text.resize(std::strlen(value.text.c_str()));
    } else if (right && known->kind == AttributeKind::real) {
      right = field.type == PluginFieldType::kFLOAT32 && field.length == 1;
      if (right) std::memcpy(&value.real, field.data, sizeof(value.real));
    } else if (right) {
      right = read_integer(field, &integer) && integer >= std::numeric_limits<int32_t>::min() &&
              integer <= std::numeric_limits<int32_t>::max();
      value.integer = static_cast<int32_t>(integer);
    }
    if (!right)
      return bad(spec, "field " + name + " has type " + std::to_string(static_cast<int32_t>(field.type)) + " and " +
                           std::to_string(field.length) + " values, expected " + type_name(known->kind));
    values_.push_back(std::move(value));
  }
  for (const FieldSpec& f : field_specs(spec))
    if (f.required && find(f.name) == nullptr) return bad(spec, std::string("field ") + f.name + " is missing");
  if (const Value* library = find(kLibraryField); library != nullptr && library->text != kLibraryVersion)
    return not_supported(std::string(spec.name) + ": the engine was built with version " + library->text +
                         " of the library, this is " + kLibraryVersion + "; build the engine anew");
  return {};
}

Status Fields::read(const OpSpec& spec, const void* data, size_t size) {
  const char* at = static_cast<const char*>(data);
  const char* const end = at + size;
  const Status damaged = bad(spec, "a serialised plugin of " + std::to_string(size) + " bytes is damaged");
  if (data == nullptr || size < sizeof(kMagic) || std::memcmp(at, kMagic, sizeof(kMagic)) != 0) return damaged;
  at += sizeof(kMagic);
  std::vector<PluginField> fields;
  while (at < end) {
    const auto* const zero = static_cast<const char*>(std::memchr(at, 0, static_cast<size_t>(end - at)));
    uint32_t length = 0;
    if (zero == nullptr || end - zero - 1 < static_cast<ptrdiff_t>(sizeof(length))) return damaged;
    std::memcpy(&length, zero + 1, sizeof(length));
    const char* const value = zero + 1 + sizeof(length);
    if (static_cast<size_t>(end - value) < length) return damaged;
    AttributeKind kind = AttributeKind::text;
    for (const FieldSpec& f : field_specs(spec))
      if (std::strcmp(at, f.name) == 0) kind = f.kind;
    if (kind != AttributeKind::text && length != 4) return damaged;
    fields.emplace_back(at, value, type_of(kind), kind == AttributeKind::text ? static_cast<int32_t>(length) : 1);
    at = value + length;
  }
  const nvinfer1::PluginFieldCollection collection = collection_of(fields);
  return read(spec, &collection);
}

const Fields::Value* Fields::find(const char* name) const {
  for (const Value& value : values_)
    if (std::strcmp(value.name, name) == 0) return &value;
  return nullptr;
}

Status Fields::attribute(const char* name, int64_t* out) const {
  if (const Value* value = find(name)) *out = value->integer;
  return {};
}
Status Fields::attribute(const char* name, bool* out) const {
  if (const Value* value = find(name)) *out = value->integer != 0;
  return {};
}
Status Fields::attribute(const char* name, float* out) const {
  if (const Value* value = find(name)) *out = value->real;
  return {};
}
Status Fields::attribute(const char* name, std::string* out) const {
  if (const Value* value = find(name)) *out = value->text;
  return {};
}

void Fields::add_text(const char* name, const std::string& text) {
  Value value;
  value.name = name, value.text = text;
  values_.push_back(std::move(value));
}

std::vector<PluginField> Fields::collection() const {
  std::vector<PluginField> fields;
  for (const Value& v : values_) {
    if (std::strcmp(v.name, kLibraryField) == 0) continue;
    switch (v.kind) {
      case AttributeKind::integer: fields.emplace_back(v.name, &v.integer, PluginFieldType::kINT32, 1); break;
      case AttributeKind::real: fields.emplace_back(v.name, &v.real, PluginFieldType::kFLOAT32, 1); break;
      case AttributeKind::text:
        fields.emplace_back(v.name, v.text.data(), PluginFieldType::kCHAR, static_cast<int32_t>(v.text.size()));
        break;
    }
  }
  fields.emplace_back(kLibraryField, kLibraryVersion, PluginFieldType::kCHAR,
                      static_cast<int32_t>(std::strlen(kLibraryVersion)));
  return fields;
}

std::string Fields::serialise() const {
  std::string bytes(kMagic, sizeof(kMagic));
  for (const PluginField& field : collection()) {
    const auto length = static_cast<uint32_t>(field.type == PluginFieldType::kCHAR ? field.length : 4);
    bytes.append(field.name, std::strlen(field.name) + 1);
    bytes.append(reinterpret_cast<const char*>(&length), sizeof(length));
    bytes.append(static_cast<const char*>(field.data), length);
  }
  return bytes;
}

}  // namespace fdpp::trt
