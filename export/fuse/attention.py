"""com.microsoft::GroupQueryAttention -> fdpp::FdppAttention, whose inputs and outputs come in the same order."""

from __future__ import annotations

import math

import onnx_ir as ir

from .. import op_spec
from ..attention_node import activation_dtype, head_size, input_of, query_heads, takes_norms
from ..dtypes import spec_name
from ..nodes import attribute_of, columns_of, dtype_of
from ..report import ExportReport

# Inputs by index, the same for both ops; FdppAttention alone has one more, phi.
_INPUTS = 16
_PAIRS = {
    "key and value": (1, 2),
    "past_key and past_value": (3, 4),
    "cos_cache and sin_cache": (7, 8),
    "k_scale and v_scale": (12, 13),
    "q_norm_weight and k_norm_weight": (14, 15),
}
_REQUIRED = {0: "query", 3: "past_key", 5: "seqlens_k", 6: "total_sequence_length"}

# GroupQueryAttention's attributes that FdppAttention lacks, with the values that mean "feature not in use".
_NEUTRAL = {
    "smooth_softmax": (-1, 0),
    "qk_output": (0,),
    "causal": (1,),
    "sliding_window_cache": (0,),
}
# FdppAttention's attributes that GroupQueryAttention lacks.
_OURS = {"softmax_mode", "phi_lower", "phi_upper"}
# Their values depend on inputs: see _refused_quantization and rewrite.
_CHECKED_WITH_INPUTS = {"kv_cache_bit_width", "k_quant_type", "v_quant_type", "qk_norm_epsilon"}
_EIGHT_BIT = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)
_MAX_HEAD_SIZE = 256


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place; nodes with a feature that our kernels lack stay, with the reason in `report`."""
    for node in model.graph.all_nodes():
        if node.domain == op_spec.DOMAIN or not node.op_type.endswith("Attention"):
            continue
        reason = refusal(node)
        if reason is not None:
            report.leave(node, reason)
            continue
        taken = op_spec.attribute_names(op_spec.ATTENTION)
        if not takes_norms(node):
            taken -= {"qk_norm_epsilon"}
        for name in set(node.attributes) - taken:
            del node.attributes[name]
        node.domain, node.op_type = op_spec.DOMAIN, op_spec.ATTENTION
        node.resize_inputs(max(i for i, value in enumerate(node.inputs) if value is not None) + 1)
        node.resize_outputs(3)
        report.rewrote(f"GroupQueryAttention -> {op_spec.ATTENTION}")


def refusal(node: ir.Node) -> str | None:
    """Why `node` cannot run on our kernels; None: it can."""
    if (node.domain, node.op_type) != ("com.microsoft", "GroupQueryAttention"):
        return "only com.microsoft::GroupQueryAttention is rewritten"
    return (
        _refused_ports(node)
        or _refused_attributes(node)
        or _refused_types(node)
        or _refused_quantization(node)
        or _refused_shapes(node)
    )


def _refused_ports(node: ir.Node) -> str | None:
    for index, value in enumerate(node.inputs):
        if value is not None and index >= _INPUTS:
            return f"input {index} is not known"
    for index, name in _REQUIRED.items():
        if input_of(node, index) is None:
            return f"input {name} is missing"
    for names, (first, second) in _PAIRS.items():
        if (input_of(node, first) is None) != (input_of(node, second) is None):
            return f"{names} must be given together"
    outputs = [bool(value.name) for value in node.outputs]
    if outputs[:3] != [True] * 3:
        return "outputs present_key and present_value are missing"
    if any(outputs[3:]):
        return "output output_qk is not supported"
    return None


def _refused_attributes(node: ir.Node) -> str | None:
    known = op_spec.attribute_names(op_spec.ATTENTION) - _OURS | _CHECKED_WITH_INPUTS
    for name, attribute in node.attributes.items():
        if name not in known and attribute.value not in _NEUTRAL.get(name, ()):
            return f"attribute {name} = {attribute.value!r} is not supported"
    for name in ("num_heads", "kv_num_heads"):
        if attribute_of(node, name, 0) <= 0:
            return f"attribute {name} is missing or not positive"
    if attribute_of(node, "num_heads", 0) % attribute_of(node, "kv_num_heads", 0):
        return "kv_num_heads does not divide num_heads"
    for name in ("scale", "softcap", *(["qk_norm_epsilon"] if takes_norms(node) else [])):
        if not math.isfinite(attribute_of(node, name, 0.0)) or attribute_of(node, name, 0.0) < 0:
            return f"attribute {name} is not a finite number of at least 0"
    window = attribute_of(node, "local_window_size", -1)
    if window < -1 or window == 0:
        return f"attribute local_window_size = {window} is neither -1 nor positive"
    if attribute_of(node, "do_rotary", 0) and input_of(node, 7) is None:
        return "do_rotary is 1 but cos_cache is missing"
    return None


def _refused_shapes(node: ir.Node) -> str | None:
    size = head_size(node)
    if size is None:
        return "the head size is not known: neither query nor past_key has a static last dimension"
    columns, heads = columns_of(input_of(node, 0)), query_heads(node)
    if columns not in (None, heads * size):
        return f"query has {columns} columns, not those of {heads} heads of {size}"
    cache = dtype_of(input_of(node, 3))
    unit = 16 if cache in _EIGHT_BIT else 8
    if size % unit or not 0 < size <= _MAX_HEAD_SIZE:
        return f"head size {size} is not a multiple of {unit} up to {_MAX_HEAD_SIZE} ({spec_name(cache)} cache)"
    half = columns_of(input_of(node, 7))
    if attribute_of(node, "do_rotary", 0) and half is not None:
        if 2 * half % 8 or not 0 < 2 * half <= size:
            return f"cos_cache rotates {2 * half} columns, not a multiple of 8 up to the head size {size}"
        if attribute_of(node, "rotary_embedding_dim", 0) not in (0, 2 * half):
            return f"rotary_embedding_dim is not the {2 * half} columns that cos_cache rotates"
    for index, name in ((14, "q_norm_weight"), (15, "k_norm_weight")):
        elements = _elements(input_of(node, index))
        if elements not in (None, size):
            return f"{name} has {elements} elements, not one for each of the head's {size} columns"
    return None


def _refused_types(node: ir.Node) -> str | None:
    cache = dtype_of(input_of(node, 3))
    values = dtype_of(input_of(node, 4))
    if cache is None or values is None:
        return f"the element type of {'past_key' if cache is None else 'past_value'} is not known"
    if cache != values:
        return f"past_key is {spec_name(cache)}, past_value {spec_name(values)}"
    if cache in (ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.INT4):
        return f"a 4-bit cache ({spec_name(cache)}) is not supported"
    query = activation_dtype(node) or cache
    if not op_spec.backends_for(op_spec.ATTENTION, T=spec_name(query), C=spec_name(cache)):
        return f"no kernel takes {spec_name(query)} queries with a {spec_name(cache)} cache"
    return None


def _refused_quantization(node: ir.Node) -> str | None:
    cache = dtype_of(input_of(node, 3))
    quantised = cache in _EIGHT_BIT
    width = attribute_of(node, "kv_cache_bit_width", 8 if quantised else 0)
    if width != (8 if quantised else 0):
        return f"attribute kv_cache_bit_width = {width} is not supported with the {spec_name(cache)} cache"
    for side, index in (("k", 12), ("v", 13)):
        kind, scale = attribute_of(node, f"{side}_quant_type", "NONE"), input_of(node, index)
        if kind not in (("PER_TENSOR", "PER_CHANNEL") if quantised else ("NONE",)):
            return f"attribute {side}_quant_type = {kind!r} does not go with the {spec_name(cache)} cache"
        if quantised != (scale is not None):
            return f"{side}_scale is {'missing' if quantised else 'given'} with the {spec_name(cache)} cache"
        size = head_size(node)
        if scale is None or size is None:
            continue
        elements, wanted = _elements(scale), 1 if kind == "PER_TENSOR" else attribute_of(node, "kv_num_heads", 0) * size
        if elements not in (None, wanted):
            return f"{side}_scale has {elements} elements, not the {wanted} of {kind}"
    return None


def _elements(value: ir.Value | None) -> int | None:
    """The static number of elements of `value`; None if it is absent or not known."""
    if value is None or value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return math.prod(value.shape)
