"""The spelling of onnxruntime-genai's model builder, which fdpp-export takes."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from common.graph import Graph
from common.shapes import GLM, OPT


class GenaiGraph(Graph):
    def prepare(self) -> None:
        self.constant("axis_1", np.array([1], np.int64))
        self.constant("index_1", np.array(1, np.int64))
        self.node("ReduceSum", ["attention_mask", "axis_1"], "lengths", keepdims=0)
        self.node("Sub", ["lengths", "axis_1"], "lengths_less_one")
        self.node("Cast", ["lengths_less_one"], "seqlens_k", to=TensorProto.INT32)
        self.node("Shape", ["attention_mask"], "mask_shape")
        self.node("Gather", ["mask_shape", "index_1"], "total_long")
        self.node("Cast", ["total_long"], "total_length", to=TensorProto.INT32)
        self.rotary = [self.table("cos", 1), self.table("sin", 1)] if self.shape.rotated else []

    def norm(self, x: str, added: str | None, name: str) -> tuple[str, str]:
        is_opt = self.shape.family == OPT
        kind = "LayerNormalization" if is_opt else "SimplifiedLayerNormalization"
        weights = [name, f"{name}.bias"] if is_opt else [name]
        out, total = self.tokens(f"{name}.out"), f"{name}.sum"
        if added is None:
            return self.node(kind, [x, *weights], out, epsilon=1e-5, axis=-1), x
        skip = {"domain": "com.microsoft", "epsilon": 1e-5}
        self.node(f"Skip{kind}", [x, added, *weights], out, "", "", self.tokens(total), **skip)
        return out, total

    def attention(self, layer: int, qkv: str) -> str:
        past = [self.cache(f"{layer}.{part}", "past", "present") for part in ("key", "value")]
        return self.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_length", *self.rotary],
            self.tokens(f"{layer}.attention", self.shape.heads * self.shape.head_size),
            f"present.{layer}.key",
            f"present.{layer}.value",
            domain="com.microsoft",
            num_heads=self.shape.heads,
            kv_num_heads=self.shape.kv_heads,
            scale=self.scale,
            do_rotary=int(bool(self.rotary)),
            rotary_interleaved=int(self.shape.family == GLM),
        )
