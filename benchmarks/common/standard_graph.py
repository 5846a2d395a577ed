"""Standard ONNX, with attention in single steps and growing caches, for decoding: tokens is 1, and past's third
dimension total - 1."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from common.graph import Graph
from common.shapes import LLAMA


class StandardGraph(Graph):
    def prepare(self) -> None:
        s = self.shape
        if s.family != LLAMA or s.heads != s.kv_heads:
            raise ValueError("the standard spelling is of llamas with as many KV heads as query heads")
        self.constant("epsilon", np.array(1e-5, np.float32))
        self.constant("square", np.array(2, np.float32))
        self.constant("scale", np.array(self.scale, self.dtype))
        self.table("cos", 2)
        self.table("sin", 2)
        self.node("Shape", ["attention_mask"], "mask_shape")
        self.constant("last", np.array([-1], np.int64))
        total = self.node("Gather", ["mask_shape", "last"], "total")
        position = self.node("Add", [total, "last"], "position")
        self.node("Gather", ["cos", position], "cos_here")
        self.node("Gather", ["sin", position], "sin_here")
        self.constant("widths", np.array([s.heads, s.kv_heads, s.kv_heads], np.int64) * s.head_size)
        self.constant("halves", np.array([s.head_size // 2] * 2, np.int64))
        for name, heads in (("q", s.heads), ("k", s.kv_heads), ("v", s.kv_heads)):
            self.constant(f"{name}_shape", np.array([0, 0, heads, s.head_size], np.int64))
        self.constant("joined", np.array([0, 0, s.heads * s.head_size], np.int64))

    def norm(self, x: str, added: str | None, name: str) -> tuple[str, str]:
        if added is not None:
            x = self.tokens(self.node("Add", [x, added], f"{name}.x"))
        wide = self.node("Cast", [x], f"{name}.wide", to=TensorProto.FLOAT)
        squares = self.node("Pow", [wide, "square"], f"{name}.squares")
        mean = self.node("ReduceMean", [squares], f"{name}.mean", axes=[-1], keepdims=1)
        root = self.node("Sqrt", [self.node("Add", [mean, "epsilon"], f"{name}.sum")], f"{name}.root")
        quotient = self.node("Div", [wide, root], f"{name}.quotient")
        narrow = self.node("Cast", [quotient], f"{name}.narrow", to=self.type)
        return self.node("Mul", [narrow, name], f"{name}.out"), x

    def attention(self, layer: int, qkv: str) -> str:
        self.node("Split", [qkv, "widths"], *(f"{layer}.{part}" for part in "qkv"), axis=-1)
        q, k, v = (self._heads_of(f"{layer}.{part}", part) for part in "qkv")
        q, k = self._rotated(q, f"{layer}.q"), self._rotated(k, f"{layer}.k")
        past = [self.cache(f"{layer}.{part}", "past", "total") for part in ("key", "value")]
        keys = self.node("Concat", [past[0], k], f"present.{layer}.key", axis=2)
        values = self.node("Concat", [past[1], v], f"present.{layer}.value", axis=2)
        turned = self.node("Transpose", [keys], f"{layer}.keys", perm=[0, 1, 3, 2])
        scaled = self.node("Mul", [q, "scale"], f"{layer}.scaled")
        scores = self.node("MatMul", [scaled, turned], f"{layer}.scores")
        weights = self.node("Softmax", [scores], f"{layer}.weights", axis=-1)
        mixed = self.node("MatMul", [weights, values], f"{layer}.mixed")
        swapped = self.node("Transpose", [mixed], f"{layer}.swapped", perm=[0, 2, 1, 3])
        return self.node("Reshape", [swapped, "joined"], f"{layer}.attention")

    def _heads_of(self, x: str, part: str) -> str:
        split = self.node("Reshape", [x, f"{part}_shape"], f"{x}.split")
        return self.node("Transpose", [split], f"{x}.heads", perm=[0, 2, 1, 3])

    def _rotated(self, x: str, name: str) -> str:
        self.node("Split", [x, "halves"], f"{name}.first", f"{name}.second", axis=-1)
        minus = self.node("Neg", [f"{name}.second"], f"{name}.minus")
        turned = self.node("Concat", [minus, f"{name}.first"], f"{name}.turned", axis=-1)
        straight = self.node("Mul", [x, "cos_here"], f"{name}.straight")
        across = self.node("Mul", [turned, "sin_here"], f"{name}.across")
        return self.node("Add", [straight, across], f"{name}.rotated")
