"""com.microsoft::GroupQueryAttention -> fdpp::FdppAttention, whose inputs and outputs come in the same order."""

from __future__ import annotations

import math

import onnx_ir as ir

from .. import op_spec
from ..dtypes import spec_name
from ..report import ExportReport

# GroupQueryAttention's inputs that the kernels do not take (plugins/kernels/attention/check.cpp).
_REFUSED_INPUTS = {
    9: "position_ids",
    10: "attention_bias",
    12: "k_scale (quantised KV cache)",
    13: "v_scale (quantised KV cache)",
    14: "q_norm_weight",
    15: "k_norm_weight",
}
_PAIRS = {"key and value": (1, 2), "past_key and past_value": (3, 4), "cos_cache and sin_cache": (7, 8)}
_REQUIRED = {0: "query", 3: "past_key", 5: "seqlens_k", 6: "total_sequence_length"}

# GroupQueryAttention's attributes that FdppAttention lacks, with the values that mean "feature not in use".
_NEUTRAL = {
    "smooth_softmax": (-1, 0),
    "qk_output": (0,),
    "causal": (1,),
    "sliding_window_cache": (0,),
    "kv_cache_bit_width": (0,),
    "k_quant_type": ("NONE",),
    "v_quant_type": ("NONE",),
}
_MAX_HEAD_SIZE = 256


def rewrite(model: ir.Model, report: ExportReport) -> None:
    """Rewrites in place; nodes with a feature that our kernels lack stay, with the reason in `report`."""
    for node in model.graph.all_nodes():
        if node.domain == op_spec.DOMAIN or not node.op_type.endswith("Attention"):
            continue
        reason = _refusal(node)
        if reason is not None:
            report.leave(node, reason)
            continue
        for name in set(node.attributes) - op_spec.attribute_names(op_spec.ATTENTION):
            del node.attributes[name]
        node.domain, node.op_type = op_spec.DOMAIN, op_spec.ATTENTION
        node.resize_inputs(max(i for i, value in enumerate(node.inputs) if value is not None) + 1)
        node.resize_outputs(3)
        report.rewrote(f"GroupQueryAttention -> {op_spec.ATTENTION}")


def _refusal(node: ir.Node) -> str | None:
    """Why `node` cannot run on our kernels; None: it can."""
    if (node.domain, node.op_type) != ("com.microsoft", "GroupQueryAttention"):
        return "only com.microsoft::GroupQueryAttention is rewritten"
    return _refused_ports(node) or _refused_attributes(node) or _refused_shapes(node) or _refused_types(node)


def _refused_ports(node: ir.Node) -> str | None:
    for index, value in enumerate(node.inputs):
        if value is not None and index > max(_REFUSED_INPUTS):
            return f"input {index} is not known"
        if value is not None and index in _REFUSED_INPUTS:
            return f"input {_REFUSED_INPUTS[index]} is not supported"
    for index, name in _REQUIRED.items():
        if _input(node, index) is None:
            return f"input {name} is missing"
    for names, (first, second) in _PAIRS.items():
        if (_input(node, first) is None) != (_input(node, second) is None):
            return f"{names} must be given together"
    outputs = [bool(value.name) for value in node.outputs]
    if outputs[:3] != [True] * 3:
        return "outputs present_key and present_value are missing"
    if any(outputs[3:]):
        return "output output_qk is not supported"
    return None


def _refused_attributes(node: ir.Node) -> str | None:
    known = op_spec.attribute_names(op_spec.ATTENTION) - {"softmax_mode"}
    for name, attribute in node.attributes.items():
        # qk_norm_epsilon belongs to the q_norm_weight input, which is absent by now.
        if name in known or name == "qk_norm_epsilon" or attribute.value in _NEUTRAL.get(name, ()):
            continue
        return f"attribute {name} = {attribute.value!r} is not supported"
    for name in ("num_heads", "kv_num_heads"):
        if _attribute(node, name, 0) <= 0:
            return f"attribute {name} is missing or not positive"
    if _attribute(node, "num_heads", 0) % _attribute(node, "kv_num_heads", 0):
        return "kv_num_heads does not divide num_heads"
    for name in ("scale", "softcap"):
        if not math.isfinite(_attribute(node, name, 0.0)) or _attribute(node, name, 0.0) < 0:
            return f"attribute {name} is not a finite number of at least 0"
    window = _attribute(node, "local_window_size", -1)
    if window < -1 or window == 0:
        return f"attribute local_window_size = {window} is neither -1 nor positive"
    if _attribute(node, "do_rotary", 0) and _input(node, 7) is None:
        return "do_rotary is 1 but cos_cache is missing"
    return None


def _refused_shapes(node: ir.Node) -> str | None:
    size = head_size(node)
    if size is None:
        return "the head size is not known: neither query nor past_key has a static last dimension"
    if size % 8 or not 0 < size <= _MAX_HEAD_SIZE:
        return f"head size {size} is not a multiple of 8 up to {_MAX_HEAD_SIZE}"
    half = _last_dimension(_input(node, 7))
    if _attribute(node, "do_rotary", 0) and half is not None:
        if 2 * half % 8 or not 0 < 2 * half <= size:
            return f"cos_cache rotates {2 * half} columns, not a multiple of 8 up to the head size {size}"
        if _attribute(node, "rotary_embedding_dim", 0) not in (0, 2 * half):
            return f"rotary_embedding_dim is not the {2 * half} columns that cos_cache rotates"
    return None


def _refused_types(node: ir.Node) -> str | None:
    cache = _dtype(_input(node, 3))
    if cache is None:
        return "the element type of past_key is not known"
    # All of them have type T, but a graph need not state the types of inner values.
    known = (_dtype(_input(node, index)) for index in (0, 1, 2, 7, 8))
    query = next((dtype for dtype in known if dtype is not None), cache)
    if not op_spec.backends_for(op_spec.ATTENTION, T=spec_name(query), C=spec_name(cache)):
        return f"no kernel takes {spec_name(query)} queries with a {spec_name(cache)} cache"
    return None


def head_size(node: ir.Node) -> int | None:
    """Columns of a head, from the query or else from past_key [B, Hkv, L, D]; None: neither says."""
    heads = _attribute(node, "num_heads", 0)
    if _input(node, 1) is None:  # packed QKV
        heads += 2 * _attribute(node, "kv_num_heads", 0)
    columns = _last_dimension(_input(node, 0))
    if columns is not None and columns % heads == 0:
        return columns // heads
    return _last_dimension(_input(node, 3))


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _attribute(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].value if name in node.attributes else default


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    return value.dtype if value is not None else None


def _last_dimension(value: ir.Value | None) -> int | None:
    """The static last dimension of `value`; None if it is absent, unknown or symbolic."""
    if value is None or not value.shape:
        return None
    last = value.shape[-1]
    return last if isinstance(last, int) else None
