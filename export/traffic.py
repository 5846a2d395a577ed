"""Bytes that a decoding step reads at least, and the tokens/s that a GPU's memory bandwidth leaves possible."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from . import op_spec
from .attention_node import head_size
from .gpus import Gpu
from .session import attentions

_CONTEXTS = (128, 1024, 4096, 16384, 65536, 131072)
_PAST = ("past_key", "past_value")
_ROTARY = ("cos_cache", "sin_cache")


@dataclass(frozen=True)
class Step:
    """A step of one row. context: its tokens. bytes: of weights and caches. tokens_per_second: None without a GPU."""

    context: int
    cache_bytes: int
    bytes: int
    tokens_per_second: float | None


@dataclass(frozen=True)
class Traffic:
    """weights: bytes that every step reads, however many rows share it. gpu: its name, bandwidth: bytes/s; "" and None
    where it is not known."""

    weights: int
    gpu: str
    bandwidth: float | None
    steps: list[Step]


def traffic_of(model: ir.Model, context_length: int, gpu: Gpu | None) -> Traffic | None:
    """What steps of the exported graph `model` read, with contexts up to `context_length` tokens; None where the graph
    does not say how large its caches are.

    Of a table only the row that is looked up counts; all other weights count in full, those of experts, too.
    """
    caches = [_Caches.of(node) for node in attentions(model)]
    if None in caches:
        return None
    weights = sum(_bytes_read(value) for graph in model.graphs() for value in graph.initializers.values())
    contexts = [context for context in _CONTEXTS if context < context_length] + [context_length]
    steps = []
    for context in contexts:
        cached = sum(cache.bytes_read(context) for cache in caches)
        total = weights + cached
        steps.append(Step(context, cached, total, gpu.bandwidth / total if gpu is not None else None))
    return Traffic(weights, gpu.name if gpu else "", gpu.bandwidth if gpu else None, steps)


@dataclass(frozen=True)
class _Caches:
    """Keys and values of one attention. token_bytes: of a token. window: tokens that a step sees; -1: all."""

    token_bytes: int
    window: int

    @classmethod
    def of(cls, node: ir.Node) -> _Caches | None:
        """None where the graph does not say."""
        past = [op_spec.inputs(node)[place] for place in _places(node, _PAST)]
        size = head_size(node)
        if size is None or any(cache is not None and cache.dtype is None for cache in past):
            return None
        row = node.attributes.get_int("kv_num_heads", 0) * size
        stored = sum(int(row * cache.dtype.itemsize) for cache in past if cache is not None)
        return cls(stored, node.attributes.get_int("local_window_size", -1))

    def bytes_read(self, context: int) -> int:
        return self.token_bytes * (min(context, self.window) if self.window > 0 else context)


def _bytes_read(value: ir.Value) -> int:
    uses, tensor = value.uses(), value.const_value
    if not uses:
        return 0
    if tensor.size > 0 and len(tensor.shape) > 0 and all(_looks_up(use.node, use.idx) for use in uses):
        return tensor.nbytes // tensor.shape[0]
    return tensor.nbytes


def _looks_up(node: ir.Node, index: int) -> bool:
    """Whether `node` reads rows of its input `index`, not all of it."""
    if op_spec.is_op(node, op_spec.ATTENTION):
        return any(op_spec.inputs(node)[place] is node.inputs[index] for place in _places(node, _ROTARY))
    return index == 0 and node.op_type.startswith("Gather") and node.attributes.get_int("axis", 0) == 0


def _places(node: ir.Node, names: tuple[str, ...]) -> list[int]:
    """Where the op has these inputs, as far as `node` goes."""
    places = map(op_spec.input_names(op_spec.ATTENTION).index, names)
    return [place for place in places if place < len(op_spec.inputs(node))]
