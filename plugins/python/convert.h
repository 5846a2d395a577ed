// Python dicts <-> the library's plain structs. Errors are Python exceptions.
#pragma once

#include <pybind11/pybind11.h>

#include "fdpp/attention.h"
#include "fdpp/device.h"
#include "fdpp/gemm.h"
#include "fdpp/op_spec.h"
#include "fdpp/status.h"

namespace fdpp::python {

// invalid_argument raises ValueError, not_supported NotImplementedError, device_error RuntimeError, out_of_memory
// MemoryError.
void raise_if_error(const Status& status);

// Attributes by the names of the op's spec; those left out take its defaults.
void parse_attributes(const pybind11::dict& attributes, AttentionAttributes* out);
void parse_attributes(const pybind11::dict& attributes, GemmAttributes* out);

// ValueError: no backend has that name.
Backend parse_backend(const std::string& text);

// A product by its shape: m, n, k, dtype ("float16"), weight_format ("f16"), has_bias, has_residual.
GemmProblem parse_problem(const pybind11::dict& problem);

// A split as split_dict() gives it; keys left out keep their defaults.
void parse_split(const pybind11::dict& split, AttentionSplit* out);
void parse_split(const pybind11::dict& split, GemmSplit* out);
pybind11::dict split_dict(const AttentionSplit& split);
pybind11::dict split_dict(const GemmSplit& split);
// Keys as DeviceInfo's members; those left out keep its defaults, so a device that is not there can be made up.
DeviceInfo parse_device(const pybind11::dict& device);
pybind11::dict device_dict(const DeviceInfo& device);

// Defaults of attributes are text, as in the spec; None: required.
pybind11::dict spec_dict(const OpSpec& spec);

}  // namespace fdpp::python
