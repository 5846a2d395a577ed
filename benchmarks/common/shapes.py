"""Shapes of decoders, and what of them lies in a file of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto, helper

LLAMA, OPT, GLM = "llama", "opt", "glm"
_BIAS = 0.02
_INT4_DEVIATION = 4.6  # of a number of 0 to 15


@dataclass(frozen=True)
class Shape:
    """Of a decoder. family: what its layers are: LLAMA; OPT: LayerNorm, learned positions, ReLU, biases; GLM: biases of
    queries, keys and values, half of the columns rotated, in pairs of neighbours. positions: a row's tokens at most."""

    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 32
    head_size: int = 128
    intermediate: int = 11008
    layers: int = 8
    vocabulary: int = 32000
    positions: int = 33792
    family: str = LLAMA
    theta: float = 1e4

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_size

    @property
    def rotated(self) -> int:
        """Columns of a head that are rotated."""
        return {LLAMA: self.head_size, OPT: 0, GLM: self.head_size // 2}[self.family]

    def products(self) -> dict[str, tuple[int, int]]:
        """Columns of x and of x · W, by the name of W."""
        found: dict[str, tuple[int, int]] = {}
        first = ("gate", "up") if self.family != OPT else ("up",)
        for layer in range(self.layers):
            found |= {
                f"{layer}.qkv": (self.hidden, self.qkv),
                f"{layer}.o": (self.heads * self.head_size, self.hidden),
                **{f"{layer}.{name}": (self.hidden, self.intermediate) for name in first},
                f"{layer}.down": (self.intermediate, self.hidden),
            }
        return found | {"lm_head": (self.hidden, self.vocabulary)}

    def norms(self) -> list[str]:
        return [f"{layer}.{name}" for layer in range(self.layers) for name in ("norm", "mlp_norm")] + ["norm"]

    def has_bias(self, product: str) -> bool:
        if self.family == OPT:
            return product != "lm_head"
        return self.family == GLM and product.endswith(".qkv")


SHAPES = {
    "Llama2-7B": Shape(layers=32),
    "Llama2-13B": Shape(hidden=5120, heads=40, kv_heads=40, intermediate=13824, layers=40),
    "Llama3-8B": Shape(kv_heads=8, intermediate=14336, layers=32, vocabulary=128256, theta=5e5),
    "OPT-6.7B": Shape(intermediate=16384, layers=32, vocabulary=50272, positions=2048, family=OPT),
    "ChatGLM2-6B": Shape(kv_heads=2, intermediate=13696, layers=28, vocabulary=65024, family=GLM),
    # For trying out what runs the others.
    "tiny-llama": Shape(256, 8, 4, 32, 512, 2, 1000, 256),
    "tiny-opt": Shape(256, 8, 8, 32, 512, 2, 1000, 256, OPT),
    "tiny-glm": Shape(256, 8, 2, 32, 512, 2, 1000, 256, GLM),
}


def named_shape(name: str, layers: int | None = None) -> Shape:
    """One of SHAPES, with all its layers or so many."""
    shape = SHAPES[name]
    return shape if layers is None else replace(shape, layers=layers)


@dataclass(frozen=True)
class Stored:
    """A tensor of random numbers. type: ONNX's number. deviation: of normal numbers around `mean`; 0: all are `mean`.
    uint8: any bytes."""

    name: str
    type: int
    dims: tuple[int, ...]
    deviation: float = 0.0
    mean: float = 0.0

    @property
    def count(self) -> int:
        return math.prod(self.dims)

    @property
    def size_bytes(self) -> int:
        return self.count * helper.tensor_dtype_to_np_dtype(self.type).itemsize


def layout(shape: Shape, element_type: int, block_size: int = 0) -> list[Stored]:
    """All weights in the order of the file. A product's W is [rows, columns] of x · W, or with a `block_size` what
    MatMulNBits has of 4 bits: NAME [columns, blocks, block_size / 2] and NAME.scales [columns, blocks]."""
    found = [Stored("embedding", element_type, (shape.vocabulary, shape.hidden), 1.0)]
    if shape.family == OPT:
        found.append(Stored("positions", element_type, (shape.positions + 2, shape.hidden), 1.0))
    for name, (rows, columns) in shape.products().items():
        deviation = 1 / np.sqrt(rows)
        if block_size:
            blocks = math.ceil(rows / block_size)
            found.append(Stored(name, TensorProto.UINT8, (columns, blocks, block_size // 2)))
            scale = deviation / _INT4_DEVIATION
            found.append(Stored(f"{name}.scales", element_type, (columns, blocks), mean=scale))
        else:
            found.append(Stored(name, element_type, (rows, columns), deviation))
        if shape.has_bias(name):
            found.append(Stored(f"{name}.bias", element_type, (columns,), _BIAS))
    for name in shape.norms():
        found.append(Stored(name, element_type, (shape.hidden,), mean=1.0))
        if shape.family == OPT:
            found.append(Stored(f"{name}.bias", element_type, (shape.hidden,), _BIAS))
    return found
