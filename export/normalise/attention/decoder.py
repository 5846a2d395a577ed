"""One decoder graph while its attentions are rewritten: what is known of its values, and what its attentions share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ...decoder_inputs import TOKENS
from . import decoder_masked
from .declined import Declined
from .evaluate import evaluate, structural_values
from .samples import SAMPLES, Sample, fixed_room, input_values

_FEWEST_POSITIONS = 16  # the samples have fewer
_SOME_ROOM = 16


class Decoder:
    """`positions`: tokens that a row may have, the rows of new rotary tables.

    samples: to evaluate parts of the graph at; longest: one with the longest row. room: slots of its caches, where new
    tokens are written into them; 0: caches grow. masks, tables: what was found out about a mask, or a pair of cosines
    and sines."""

    def __init__(self, model: ir.Model, positions: int) -> None:
        self.graph = model.graph
        self.opsets = model.opset_imports
        self.positions = max(positions, _FEWEST_POSITIONS)
        fixed = fixed_room(model.graph)
        written = any(node.op_type in ("TensorScatter", decoder_masked.NAME) for node in model.graph)
        self.room = fixed or (_SOME_ROOM if written else 0)
        self.samples = [replace(sample, room=self.room) for sample in SAMPLES]
        most = fixed or self.positions
        self.longest = Sample(2, 3, most - 3, 1, most if self.room else 0)
        self.structural = structural_values(model.graph)
        self.masks: dict[tuple[ir.Value | None, ir.Value | None, bool], Any] = {}
        self.tables: dict[frozenset[Any], Any] = {}
        self._made: dict[str, ir.Value] = {}

    def evaluate(
        self, values: list[ir.Value], sample: Sample, given: Mapping[ir.Value, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """`values` at `sample`, where `given` are as there. Raises Declined where that cannot be done."""
        return evaluate(values, {**input_values(self.graph, sample), **(given or {})}, self.opsets)

    def input(self, name: str) -> ir.Value | None:
        """The graph input `name`."""
        return next((value for value in self.graph.inputs if value.name == name), None)

    def tokens(self) -> ir.Value:
        """The graph input whose first dimensions are [batch, tokens]. Raises Declined if there is none."""
        for name in TOKENS:
            if (value := self.input(name)) is not None:
                return value
        raise Declined(f"the graph has no input named {' or '.join(TOKENS)}")

    def constant(self, values: np.ndarray, name: str) -> ir.Value:
        """A new initializer, or the one that already has that name."""
        if name not in self.graph.initializers:
            value = ir.Value(name=name, const_value=ir.Tensor(values, name=name))
            value.shape, value.type = ir.Shape(values.shape), ir.TensorType(value.const_value.dtype)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def ints(self, *values: int) -> ir.Value:
        """An int64 constant [n]."""
        return self.constant(np.array(values, np.int64), f"fdpp.int64.{list(values)}")

    def add(self, op: str, inputs: list[ir.Value], name: str, dtype: ir.DataType, **attributes: Any) -> ir.Value:
        """The output of a new node, or of an earlier one of that name; the graph is to be sorted at the end."""
        return self.add_before(self.graph[0], op, inputs, name, dtype, **attributes)

    def add_before(
        self, place: ir.Node, op: str, inputs: list[ir.Value], name: str, dtype: ir.DataType, **attributes: Any
    ) -> ir.Value:
        """The same for a new node ahead of the node `place`."""
        if name not in self._made:
            node = ir.node(op, inputs, attributes=attributes, name=name)
            node.outputs[0].name, node.outputs[0].dtype = name, dtype
            self.graph.insert_before(place, node)
            self._made[name] = node.outputs[0]
        return self._made[name]
