"""A copy of the graph that also puts out what scores are made of: queries and keys of each attention, normalised and
rotated by the op itself, and its bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .. import op_spec
from ..attention_node import activation_dtype, head_size
from ..pack import register

_PREFIX = "fdpp_calibrate"


@dataclass(frozen=True)
class ProbedAttention:
    """One attention: the graph's outputs with its queries [B, Hq, S, D], its keys [B, Hkv, S, D] and its bias, and how
    scores follow from them. activations: the element type, by name."""

    node: str
    queries: str
    keys: str
    bias: str | None
    q_heads: int
    scale: float
    softcap: float
    window: int
    activations: ir.DataType

    @property
    def outputs(self) -> list[str]:
        """The graph's outputs that it needs."""
        return [self.queries, self.keys, *([self.bias] if self.bias is not None else [])]


def add_probes(model: ir.Model) -> list[ProbedAttention]:
    """Adds outputs to `model` for each FdppAttention of the graph, in either form."""
    model.opset_imports[op_spec.DOMAIN] = op_spec.VERSION
    probes = _Probes(model.graph)
    nodes = [node for node in model.graph if op_spec.is_op(node, op_spec.ATTENTION)]
    return [probes.add(node, index) for index, node in enumerate(nodes)]


class _Probes:
    def __init__(self, graph: ir.Graph):
        self._graph = graph
        self._biases: dict[ir.Value, str] = {}
        self._totals: dict[ir.Value, ir.Value] = {}

    def add(self, node: ir.Node, index: int) -> ProbedAttention:
        names = op_spec.input_names(op_spec.ATTENTION)
        given = dict(zip(names, op_spec.inputs(node), strict=False))
        q_heads, kv_heads = (node.attributes.get_int(name) for name in ("num_heads", "kv_num_heads"))
        size = head_size(node)
        dtype = activation_dtype(node) or given["past_key"].dtype
        query, key = given["query"], given.get("key")
        if key is None:
            packed, query_columns = query, q_heads * size
            query = self._columns(packed, 0, query_columns, f"{index}.query")
            key = self._columns(packed, query_columns, query_columns + kv_heads * size, f"{index}.key")
        rotated = []
        for name, value, heads, norm in (("q", query, q_heads, "q_norm"), ("k", key, kv_heads, "k_norm")):
            value = self._as_stored(node, given, value, heads, given.get(norm))
            rotated.append(self._output(value, f"{index}.{name}", dtype))
        scale = node.attributes.get_float("scale", 0.0)
        return ProbedAttention(
            node=node.name or f"({node.outputs[0].name})",
            queries=rotated[0],
            keys=rotated[1],
            bias=self._bias(given.get("attention_bias"), dtype),
            q_heads=q_heads,
            scale=scale or 1 / math.sqrt(size),
            softcap=node.attributes.get_float("softcap", 0.0),
            window=node.attributes.get_int("local_window_size", -1),
            activations=dtype,
        )

    def _as_stored(self, node: ir.Node, given: dict, value: ir.Value, heads: int, norm: ir.Value | None) -> ir.Value:
        """`value` [B, S, heads * D] as the op stores keys: normalised by `norm`, rotated, [B, heads, S, D].

        It is the keys of an attention of its own, a prompt, where each query sees one key alone: that costs little.
        """
        total = given["total_sequence_length"]
        inputs = [value, value, value, None, None, given["seqlens_k"], self._number(node, total)]
        inputs += [given.get(name) for name in ("cos_cache", "sin_cache", "position_ids")]
        inputs += [None, None, None, None, norm, norm]
        taken = ("do_rotary", "rotary_interleaved", "rotary_embedding_dim", "qk_norm_epsilon")
        attributes = [node.attributes[name] for name in taken if name in node.attributes]
        settings = {"num_heads": heads, "kv_num_heads": heads, "local_window_size": 1}
        attributes += [ir.AttrInt64(name, number) for name, number in settings.items()]
        return self._node(op_spec.ATTENTION, inputs, attributes, op_spec.DOMAIN, outputs=3)[1]

    def _number(self, node: ir.Node, total: ir.Value) -> ir.Value:
        """total_sequence_length as the plain form has it; the dense form has a tensor of that last dimension."""
        if node.domain == op_spec.DOMAIN:
            return total
        if total not in self._totals:
            (shape,) = self._node("Shape", [total])
            (last,) = self._node("Gather", [shape, self._constant([-1], "last")])
            (self._totals[total],) = self._node("Cast", [last], [ir.AttrInt64("to", ir.DataType.INT32)])
        return self._totals[total]

    def _columns(self, value: ir.Value, begin: int, end: int, name: str) -> ir.Value:
        numbers = ((begin, "begin"), (end, "end"), (-1, "axis"))
        limits = [self._constant([number], f"{name}.{what}") for number, what in numbers]
        return self._node("Slice", [value, *limits])[0]

    def _bias(self, bias: ir.Value | None, dtype: ir.DataType) -> str | None:
        if bias is not None and bias not in self._biases:
            (copy,) = self._node("Identity", [bias])
            self._biases[bias] = self._output(copy, f"bias.{len(self._biases)}", dtype)
        return None if bias is None else self._biases[bias]

    def _constant(self, numbers: list[int], name: str) -> ir.Value:
        return register(self._graph, ir.tensor(np.array(numbers, np.int64), name=f"{_PREFIX}.{name}"))

    def _node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr] = (),
        domain: str = "",
        outputs: int = 1,
    ) -> Sequence[ir.Value]:
        node = ir.Node(domain, op, inputs, attributes, num_outputs=outputs)
        self._graph.append(node)
        return node.outputs

    def _output(self, value: ir.Value, name: str, dtype: ir.DataType) -> str:
        value.name, value.dtype = f"{_PREFIX}.{name}", dtype
        self._graph.outputs.append(value)
        return value.name
