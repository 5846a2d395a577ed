"""What the spellings of a decoder's graph have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from common.random_weights import WEIGHTS_FILE
from common.shapes import OPT, Shape, layout


class Graph(ABC):
    """Over the weights beside it. Inputs: input_ids [batch, tokens], attention_mask [batch, total], position_ids
    [batch, tokens] where positions are learned, past.N.key and past.N.value."""

    def __init__(self, shape: Shape, element_type: int, block_size: int = 0):
        self.shape = shape
        self.type = element_type
        self.block_size = block_size
        self.dtype = helper.tensor_dtype_to_np_dtype(element_type)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.values: list[onnx.ValueInfoProto] = []
        self.inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        ]
        offset = 0
        for stored in layout(shape, element_type, block_size):
            tensor = TensorProto(
                name=stored.name, data_type=stored.type, dims=stored.dims, data_location=TensorProto.EXTERNAL
            )
            for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", stored.size_bytes)):
                tensor.external_data.add(key=key, value=str(value))
            self.constants.append(tensor)
            offset += stored.size_bytes

    def model(self) -> onnx.ModelProto:
        self.prepare()
        self._decoder()
        graph = helper.make_graph(
            self.nodes, self.shape.family, self.inputs, self.outputs, self.constants, value_info=self.values
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    # ---- what a spelling says

    @abstractmethod
    def prepare(self) -> None:
        """Constants and nodes that all layers share."""

    @abstractmethod
    def norm(self, x: str, added: str | None, name: str) -> tuple[str, str]:
        """The normalised sum of x and `added`, and the sum."""

    @abstractmethod
    def attention(self, layer: int, qkv: str) -> str: ...

    # ---- pieces

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, *more: str, domain: str = "", **attributes) -> str:
        made = helper.make_node(op, inputs, [output, *more], name=output, domain=domain or None, **attributes)
        self.nodes.append(made)
        return output

    def table(self, name: str, repeats: int) -> str:
        """cos or sin of every position's angles, as many times side by side."""
        half = self.shape.rotated // 2
        angles = np.outer(np.arange(self.shape.positions), self.shape.theta ** (-np.arange(half) / half))
        return self.constant(name, np.tile(getattr(np, name)(angles), repeats).astype(self.dtype))

    def cache(self, name: str, past: str, present: str) -> str:
        size = ["batch", self.shape.kv_heads, past, self.shape.head_size]
        self.inputs.append(helper.make_tensor_value_info(f"past.{name}", self.type, size))
        grown = [*size[:2], present, size[3]]
        self.outputs.append(helper.make_tensor_value_info(f"present.{name}", self.type, grown))
        return f"past.{name}"

    def tokens(self, name: str, width: int | None = None) -> str:
        """States the type and the shape of a tensor of one vector a token."""
        size = ["batch", "tokens", width or self.shape.hidden]
        self.values.append(helper.make_tensor_value_info(name, self.type, size))
        return name

    def product(self, x: str, name: str, output: str | None = None) -> str:
        """x · W, and the bias where there is one."""
        rows, columns = self.shape.products()[name]
        biased = self.shape.has_bias(name)
        output = output or f"{name}.out"
        made = f"{name}.product" if biased else output
        if self.block_size:
            sizes = {"K": rows, "N": columns, "bits": 4, "block_size": self.block_size}
            self.node("MatMulNBits", [x, name, f"{name}.scales"], made, domain="com.microsoft", **sizes)
        else:
            self.node("MatMul", [x, name], made)
        if biased:
            self.node("Add", [self.tokens(made, columns), f"{name}.bias"], output)
        return output if name == "lm_head" else self.tokens(output, columns)

    def _embedding(self) -> str:
        embedded = self.tokens(self.node("Gather", ["embedding", "input_ids"], "embedded"))
        if self.shape.family != OPT:
            return embedded
        self.inputs.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "tokens"]))
        self.constant("first_position", np.array(2, np.int64))
        place = self.node("Add", ["position_ids", "first_position"], "place")
        position = self.tokens(self.node("Gather", ["positions", place], "position"))
        return self.tokens(self.node("Add", [embedded, position], "placed"))

    def _feed_forward(self, layer: int, x: str) -> str:
        up = self.product(x, f"{layer}.up")
        if self.shape.family == OPT:
            return self.product(self.node("Relu", [up], f"{layer}.relu"), f"{layer}.down")
        gate = self.product(x, f"{layer}.gate")
        sigmoid = self.node("Sigmoid", [gate], f"{layer}.sigmoid")
        silu = self.node("Mul", [gate, sigmoid], f"{layer}.silu")
        return self.product(self.node("Mul", [silu, up], f"{layer}.product"), f"{layer}.down")

    def _decoder(self) -> None:
        x, added = self._embedding(), None
        for layer in range(self.shape.layers):
            normed, x = self.norm(x, added, f"{layer}.norm")
            mixed = self.attention(layer, self.product(normed, f"{layer}.qkv"))
            normed, x = self.norm(x, self.product(mixed, f"{layer}.o"), f"{layer}.mlp_norm")
            added = self._feed_forward(layer, normed)
        normed, _ = self.norm(x, added, "norm")
        self.product(normed, "lm_head", "logits")
        size = ["batch", "tokens", self.shape.vocabulary]
        self.outputs.insert(0, helper.make_tensor_value_info("logits", self.type, size))

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.shape.head_size)
