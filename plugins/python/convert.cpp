#include "convert.h"

#include <set>
#include <string>

#include "fdpp/read_attributes.h"

namespace py = pybind11;

namespace fdpp::python {
namespace {

// Reads a dict key by key and names what it does not know.
class DictReader {
 public:
  DictReader(const char* what, const py::dict& dict) : what_(what), dict_(dict) {}

  template <typename T>
  bool read(const char* key, T* out) {
    known_.insert(key);
    if (!dict_.contains(key)) return false;
    try {
      *out = dict_[key].cast<T>();
    } catch (const py::cast_error&) {
      throw py::value_error(std::string(what_) + " " + key + " is " + py::repr(dict_[key]).cast<std::string>() +
                            ", a value of the wrong type");
    }
    return true;
  }

  void finish() const {
    for (const auto& item : dict_) {
      const std::string key = py::str(item.first).cast<std::string>();
      if (!known_.count(key)) throw py::value_error("unknown " + std::string(what_) + " \"" + key + "\"");
    }
  }

 private:
  const char* what_;
  const py::dict& dict_;
  std::set<std::string> known_;
};

const char* attribute_kind_name(AttributeKind kind) {
  switch (kind) {
    case AttributeKind::integer: return "integer";
    case AttributeKind::real: return "real";
    case AttributeKind::text: return "text";
  }
  return "?";
}

void check_required(const OpSpec& spec, const py::dict& attributes) {
  for (const AttributeSpec& a : spec.attributes)
    if (a.default_value == nullptr && !attributes.contains(a.name))
      throw py::value_error(std::string(spec.name) + ": attribute " + a.name + " is missing");
}

// For read_attributes().
class AttributeSource {
 public:
  explicit AttributeSource(const py::dict& attributes) : reader_("attribute", attributes) {}

  template <typename T>
  Status attribute(const char* name, T* out) const {
    reader_.read(name, out);
    return {};
  }
  Status attribute(const char* name, bool* out) const {
    int64_t flag = 0;
    if (reader_.read(name, &flag)) *out = flag != 0;
    return {};
  }
  void finish() const { reader_.finish(); }

 private:
  mutable DictReader reader_;
};

template <typename Attributes>
void parse_attributes_of(const OpSpec& spec, const py::dict& attributes, Attributes* out) {
  check_required(spec, attributes);
  const AttributeSource source(attributes);
  raise_if_error(read_attributes(source, out));
  source.finish();
}

py::list port_list(const std::vector<PortSpec>& ports) {
  py::list list;
  for (const PortSpec& p : ports) {
    py::dict d;
    d["name"] = p.name;
    d["type"] = p.type;
    d["optional"] = p.optional;
    d["host_memory"] = p.host_memory;
    list.append(d);
  }
  return list;
}

template <typename Enum, typename Name>
Enum parse_enum(const char* key, const std::string& text, std::initializer_list<Enum> values, Name name) {
  std::string known;
  for (Enum value : values) {
    if (text == name(value)) return value;
    known += (known.empty() ? "" : ", ") + std::string(name(value));
  }
  throw py::value_error(std::string(key) + " is \"" + text + "\", expected one of " + known);
}

}  // namespace

void raise_if_error(const Status& status) {
  PyObject* type = nullptr;
  switch (status.code()) {
    case StatusCode::ok: return;
    case StatusCode::invalid_argument: type = PyExc_ValueError; break;
    case StatusCode::not_supported: type = PyExc_NotImplementedError; break;
    case StatusCode::device_error: type = PyExc_RuntimeError; break;
    case StatusCode::out_of_memory: type = PyExc_MemoryError; break;
  }
  PyErr_SetString(type, status.message().c_str());
  throw py::error_already_set();
}

void parse_attributes(const py::dict& attributes, AttentionAttributes* out) {
  parse_attributes_of(attention_spec(), attributes, out);
}

void parse_attributes(const py::dict& attributes, GemmAttributes* out) {
  parse_attributes_of(gemm_spec(), attributes, out);
}

GemmProblem parse_problem(const py::dict& problem) {
  GemmProblem p;
  GemmAttributes attributes;
  DictReader reader("problem key", problem);
  std::string text;
  reader.read("m", &p.m);
  reader.read("n", &attributes.n);
  reader.read("k", &attributes.k);
  const auto types = {DType::f32, DType::f16, DType::bf16};
  if (reader.read("dtype", &text)) p.dtype = parse_enum("problem dtype", text, types, dtype_name);
  reader.read("weight_format", &attributes.weight_format);
  if (!reader.read("block_size", &attributes.block_size) &&
      attributes.weight_format == weight_format_name(WeightFormat::int4))
    attributes.block_size = 32;
  reader.read("accuracy_level", &attributes.accuracy_level);
  reader.read("has_bias", &p.has_bias);
  reader.read("has_residual", &p.has_residual);
  reader.finish();
  if (p.m < 1) throw py::value_error("problem m is " + std::to_string(p.m) + ", expected a positive number");
  raise_if_error(check_gemm_attributes(attributes, &p));
  p.norm = Norm::none;  // what it would be with a norm_weight
  return p;
}

Backend parse_backend(const std::string& text) {
  return parse_enum("device backend", text, {Backend::cpu, Backend::cuda, Backend::hip}, backend_name);
}

void parse_split(const py::dict& split, AttentionSplit* out) {
  DictReader reader("split key", split);
  reader.read("pieces", &out->pieces);
  reader.read("cluster", &out->cluster);
  reader.read("blocks_per_multiprocessor", &out->blocks_per_multiprocessor);
  reader.finish();
}

void parse_split(const py::dict& split, GemmSplit* out) {
  DictReader reader("split key", split);
  reader.read("pieces", &out->pieces);
  reader.read("rows", &out->rows);
  reader.read("stages", &out->stages);
  reader.read("algorithm", &out->algorithm);
  reader.finish();
}

py::dict split_dict(const AttentionSplit& split) {
  py::dict d;
  d["pieces"] = split.pieces;
  d["cluster"] = split.cluster;
  d["blocks_per_multiprocessor"] = split.blocks_per_multiprocessor;
  return d;
}

py::dict split_dict(const GemmSplit& split) {
  py::dict d;
  d["pieces"] = split.pieces;
  d["rows"] = split.rows;
  d["stages"] = split.stages;
  d["algorithm"] = split.algorithm;
  return d;
}

DeviceInfo parse_device(const py::dict& device) {
  DeviceInfo d;
  DictReader reader("device key", device);
  std::string text;
  if (reader.read("backend", &text))
    d.backend = parse_backend(text);
  reader.read("ordinal", &d.ordinal);
  reader.read("name", &d.name);
  reader.read("compute_capability", &d.compute_capability);
  reader.read("multiprocessors", &d.multiprocessors);
  reader.read("l2_bytes", &d.l2_bytes);
  reader.read("shared_memory_per_block", &d.shared_memory_per_block);
  reader.read("memory_bytes", &d.memory_bytes);
  reader.read("memory_bandwidth", &d.memory_bandwidth);
  if (reader.read("isa", &text))
    d.isa = parse_enum("device isa", text, {CpuIsa::scalar, CpuIsa::avx2, CpuIsa::avx512}, cpu_isa_name);
  reader.read("avx_vnni", &d.avx_vnni);
  reader.read("avx512_vnni", &d.avx512_vnni);
  reader.read("threads", &d.threads);
  reader.read("host_gemm", &d.host_gemm);
  reader.finish();
  return d;
}

py::dict device_dict(const DeviceInfo& d) {
  py::dict out;
  out["backend"] = backend_name(d.backend);
  out["ordinal"] = d.ordinal;
  out["name"] = d.name;
  out["compute_capability"] = d.compute_capability;
  out["multiprocessors"] = d.multiprocessors;
  out["l2_bytes"] = d.l2_bytes;
  out["shared_memory_per_block"] = d.shared_memory_per_block;
  out["memory_bytes"] = d.memory_bytes;
  out["memory_bandwidth"] = d.memory_bandwidth;
  out["isa"] = cpu_isa_name(d.isa);
  out["avx_vnni"] = d.avx_vnni;
  out["avx512_vnni"] = d.avx512_vnni;
  out["threads"] = d.threads;
  out["host_gemm"] = d.host_gemm;
  return out;
}

py::dict spec_dict(const OpSpec& spec) {
  py::list attributes, signatures, in_place;
  for (const AttributeSpec& a : spec.attributes) {
    py::dict d;
    d["name"] = a.name;
    d["kind"] = attribute_kind_name(a.kind);
    d["default"] = a.default_value == nullptr ? py::object(py::none()) : py::str(a.default_value);
    attributes.append(d);
  }
  for (const OpSignature& s : spec.signatures) {
    py::dict types, d;
    for (const TypeBinding& t : s.types) types[t.variable] = t.type;
    d["backend"] = s.backend;
    d["types"] = types;
    signatures.append(d);
  }
  for (const InPlace& pair : spec.in_place) {
    py::list both;
    both.append(pair.input);
    both.append(pair.output);
    in_place.append(both);
  }
  py::dict out;
  out["name"] = spec.name;
  out["domain"] = kOpDomain;
  out["version"] = kOpVersion;
  out["inputs"] = port_list(spec.inputs);
  out["outputs"] = port_list(spec.outputs);
  out["attributes"] = attributes;
  out["signatures"] = signatures;
  out["in_place"] = in_place;
  return out;
}

}  // namespace fdpp::python
