"""Llama-shaped decoders with random weights, in two spellings that share one file of weights: that of
onnxruntime-genai's builder, which fdpp-export takes, and standard ONNX, with attention in single steps and growing
caches, for decoding."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTS_FILE = "weights.bin"
SPELLINGS = ("genai", "standard")
_CHUNK = 1 << 21  # numbers drawn at a time


@dataclass(frozen=True)
class Shape:
    """Of a decoder. Weights are [rows, columns] of x · W."""

    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 32
    head_size: int = 128
    intermediate: int = 11008
    layers: int = 8
    vocabulary: int = 32000
    positions: int = 16384

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_size

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, in the order of the file."""
        found: dict[str, tuple[int, ...]] = {"embedding": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            found |= {
                f"{layer}.norm": (self.hidden,),
                f"{layer}.qkv": (self.hidden, self.qkv),
                f"{layer}.o": (self.heads * self.head_size, self.hidden),
                f"{layer}.mlp_norm": (self.hidden,),
                f"{layer}.gate": (self.hidden, self.intermediate),
                f"{layer}.up": (self.hidden, self.intermediate),
                f"{layer}.down": (self.intermediate, self.hidden),
            }
        return found | {"norm": (self.hidden,), "lm_head": (self.hidden, self.vocabulary)}


def write_weights(folder: Path, shape: Shape, dtype: np.dtype) -> None:
    """FOLDER/weights.bin: normal numbers, by the square root of the rows that a product sums over; norms are ones."""

    def numbers(piece: tuple[np.random.SeedSequence, int, float]) -> bytes:
        seed, count, root = piece
        drawn = np.random.default_rng(seed).standard_normal(count, np.float32)
        return (drawn / np.float32(root)).astype(dtype).tobytes()

    seeds = np.random.SeedSequence(0)
    # The threads' work is numpy's alone, which lets them run side by side.
    with open(folder / WEIGHTS_FILE, "wb") as file, ThreadPoolExecutor() as pool:
        for size in shape.weights().values():
            count = int(np.prod(size))
            if len(size) == 1:
                file.write(np.ones(count, dtype).tobytes())
                continue
            pieces = [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]
            root = np.sqrt(size[0])
            given = zip(seeds.spawn(len(pieces)), pieces, [root] * len(pieces), strict=True)
            file.writelines(pool.map(numbers, given))


def write_graph(path: Path, shape: Shape, spelling: str, element_type: int = TensorProto.FLOAT16) -> None:
    """A graph over the weights beside it. Inputs: input_ids [batch, tokens], attention_mask [batch, total], past.N.key
    and past.N.value; of the standard spelling tokens is 1 and past's third dimension total - 1."""
    graph = _Graph(shape, element_type)
    spell = graph.genai if spelling == "genai" else graph.standard
    spell()
    onnx.save(graph.model(), path)


class _Graph:
    def __init__(self, shape: Shape, element_type: int):
        self.shape = shape
        self.type = element_type
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
        for name, size in shape.weights().items():
            length = int(np.prod(size)) * self.dtype.itemsize
            tensor = TensorProto(name=name, data_type=element_type, dims=size, data_location=TensorProto.EXTERNAL)
            for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            self.constants.append(tensor)
            offset += length

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "llama", self.inputs, self.outputs, self.constants, value_info=self.values
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

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
        half = self.shape.head_size // 2
        angles = np.outer(np.arange(self.shape.positions), 1e4 ** (-np.arange(half) / half))
        return self.constant(name, np.tile(getattr(np, name)(angles), repeats).astype(self.dtype))

    def cache(self, name: str, past: str, present: str) -> str:
        size = ["batch", self.shape.kv_heads, past, self.shape.head_size]
        self.inputs.append(helper.make_tensor_value_info(f"past.{name}", self.type, size))
        grown = [*size[:2], present, size[3]]
        self.outputs.append(helper.make_tensor_value_info(f"present.{name}", self.type, grown))
        return f"past.{name}"

    def tokens(self, name: str) -> str:
        """States the type and the shape of a tensor of one vector a token."""
        size = ["batch", "tokens", self.shape.hidden]
        self.values.append(helper.make_tensor_value_info(name, self.type, size))
        return name

    def layers(self, norm, attention) -> None:
        """What both spellings have in common."""
        x = self.tokens(self.node("Gather", ["embedding", "input_ids"], "embedded"))
        for i in range(self.shape.layers):
            qkv = self.node("MatMul", [norm(x, f"{i}.norm"), f"{i}.qkv"], f"{i}.qkv.out")
            mixed = self.tokens(self.node("MatMul", [attention(i, qkv), f"{i}.o"], f"{i}.o.out"))
            x = self.tokens(self.node("Add", [x, mixed], f"{i}.x"))
            normed = norm(x, f"{i}.mlp_norm")
            gate = self.node("MatMul", [normed, f"{i}.gate"], f"{i}.gate.out")
            up = self.node("MatMul", [normed, f"{i}.up"], f"{i}.up.out")
            sigmoid = self.node("Sigmoid", [gate], f"{i}.sigmoid")
            silu = self.node("Mul", [gate, sigmoid], f"{i}.silu")
            product = self.node("Mul", [silu, up], f"{i}.product")
            down = self.tokens(self.node("MatMul", [product, f"{i}.down"], f"{i}.down.out"))
            x = self.tokens(self.node("Add", [x, down], f"{i}.out"))
        self.node("MatMul", [norm(x, "norm"), "lm_head"], "logits")
        size = ["batch", "tokens", self.shape.vocabulary]
        self.outputs.insert(0, helper.make_tensor_value_info("logits", self.type, size))

    # ---- spellings

    def genai(self) -> None:
        s = self.shape
        self.constant("axis_1", np.array([1], np.int64))
        self.constant("index_1", np.array(1, np.int64))
        self.node("ReduceSum", ["attention_mask", "axis_1"], "lengths", keepdims=0)
        self.node("Sub", ["lengths", "axis_1"], "lengths_less_one")
        self.node("Cast", ["lengths_less_one"], "seqlens_k", to=TensorProto.INT32)
        self.node("Shape", ["attention_mask"], "mask_shape")
        self.node("Gather", ["mask_shape", "index_1"], "total_long")
        self.node("Cast", ["total_long"], "total_length", to=TensorProto.INT32)
        cos, sin = self.table("cos", 1), self.table("sin", 1)

        def norm(x: str, name: str) -> str:
            return self.node("SimplifiedLayerNormalization", [x, name], f"{name}.out", epsilon=1e-5, axis=-1)

        def attention(i: int, qkv: str) -> str:
            past = [self.cache(f"{i}.{part}", "past", "present") for part in ("key", "value")]
            return self.node(
                "GroupQueryAttention",
                [qkv, "", "", *past, "seqlens_k", "total_length", cos, sin],
                f"{i}.attention",
                f"present.{i}.key",
                f"present.{i}.value",
                domain="com.microsoft",
                num_heads=s.heads,
                kv_num_heads=s.kv_heads,
                do_rotary=1,
                rotary_interleaved=0,
            )

        self.layers(norm, attention)

    def standard(self) -> None:
        s = self.shape
        self.constant("epsilon", np.array(1e-5, np.float32))
        self.constant("square", np.array(2, np.float32))
        self.constant("scale", np.array(s.head_size**-0.5, self.dtype))
        cos, sin = self.table("cos", 2), self.table("sin", 2)
        self.node("Shape", ["attention_mask"], "mask_shape")
        self.constant("last", np.array([-1], np.int64))
        total = self.node("Gather", ["mask_shape", "last"], "total")
        position = self.node("Add", [total, "last"], "position")
        self.node("Gather", [cos, position], "cos_here")
        self.node("Gather", [sin, position], "sin_here")
        widths = np.array([s.heads, s.kv_heads, s.kv_heads], np.int64) * s.head_size
        self.constant("widths", widths)
        self.constant("halves", np.array([s.head_size // 2] * 2, np.int64))
        for name, heads in (("q", s.heads), ("k", s.kv_heads), ("v", s.kv_heads)):
            self.constant(f"{name}_shape", np.array([0, 0, heads, s.head_size], np.int64))
        self.constant("joined", np.array([0, 0, s.heads * s.head_size], np.int64))

        def norm(x: str, name: str) -> str:
            wide = self.node("Cast", [x], f"{name}.wide", to=TensorProto.FLOAT)
            squares = self.node("Pow", [wide, "square"], f"{name}.squares")
            mean = self.node("ReduceMean", [squares], f"{name}.mean", axes=[-1], keepdims=1)
            root = self.node("Sqrt", [self.node("Add", [mean, "epsilon"], f"{name}.sum")], f"{name}.root")
            quotient = self.node("Div", [wide, root], f"{name}.quotient")
            narrow = self.node("Cast", [quotient], f"{name}.narrow", to=self.type)
            return self.node("Mul", [narrow, name], f"{name}.out")

        def heads_of(x: str, i: int, part: str) -> str:
            split = self.node("Reshape", [x, f"{part}_shape"], f"{i}.{part}.split")
            return self.node("Transpose", [split], f"{i}.{part}.heads", perm=[0, 2, 1, 3])

        def rotated(x: str, name: str) -> str:
            self.node("Split", [x, "halves"], f"{name}.first", f"{name}.second", axis=-1)
            minus = self.node("Neg", [f"{name}.second"], f"{name}.minus")
            turned = self.node("Concat", [minus, f"{name}.first"], f"{name}.turned", axis=-1)
            straight = self.node("Mul", [x, "cos_here"], f"{name}.straight")
            across = self.node("Mul", [turned, "sin_here"], f"{name}.across")
            return self.node("Add", [straight, across], f"{name}.rotated")

        def attention(i: int, qkv: str) -> str:
            if s.heads != s.kv_heads:
                raise ValueError("the standard spelling has as many KV heads as query heads")
            self.node("Split", [qkv, "widths"], *(f"{i}.{part}" for part in "qkv"), axis=-1)
            q, k, v = (heads_of(f"{i}.{part}", i, part) for part in "qkv")
            q, k = rotated(q, f"{i}.q"), rotated(k, f"{i}.k")
            past = [self.cache(f"{i}.{part}", "past", "total") for part in ("key", "value")]
            keys = self.node("Concat", [past[0], k], f"present.{i}.key", axis=2)
            values = self.node("Concat", [past[1], v], f"present.{i}.value", axis=2)
            turned = self.node("Transpose", [keys], f"{i}.keys", perm=[0, 1, 3, 2])
            scores = self.node("MatMul", [self.node("Mul", [q, "scale"], f"{i}.scaled"), turned], f"{i}.scores")
            weights = self.node("Softmax", [scores], f"{i}.weights", axis=-1)
            mixed = self.node("MatMul", [weights, values], f"{i}.mixed")
            swapped = self.node("Transpose", [mixed], f"{i}.swapped", perm=[0, 2, 1, 3])
            return self.node("Reshape", [swapped, "joined"], f"{i}.attention")

        self.layers(norm, attention)
