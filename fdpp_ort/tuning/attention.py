"""The attention that is worth tuning on a GPU: decoding, one new token a row, over caches that a model or somebody
names. On a CPU the kernels divide their work themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from fdpp_ort.errors import FdppError
from fdpp_ort.tuning.products import DTYPES, read_graph

# The table's names of the types that caches have.
CACHE_DTYPES = {"f16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "float8e4m3fn"}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# 128 is as far as the kernel for short contexts goes: what is found at one context holds for those below it.
CONTEXTS = (128, 256, 1024, 4096, 16384, 65536)
_FLOATS = ("float16", "bfloat16")  # of activations on a GPU
_SCALES = {"int8": 1 / 64, "float8e4m3fn": 1.0}  # random bytes then stand for numbers of about 1
_ELEMENT_BYTES = {"int8": 1, "float8e4m3fn": 1}
_OPS = (("fdpp", "FdppAttention"), ("com.microsoft", "GroupQueryAttention"))  # the latter becomes the former on export
_PAST_KEY, _COS_CACHE = 3, 7  # of the inputs of both


@dataclass(frozen=True, order=True)
class AttentionShape:
    """What a table has an entry for, whatever batch and context."""

    q_heads: int
    kv_heads: int
    head_size: int
    dtype: str  # of query and output, "float16"
    cache_dtype: str  # "float8e4m3fn"

    @property
    def cache_format(self) -> str:
        return next(name for name, dtype in CACHE_DTYPES.items() if dtype == self.cache_dtype)

    @property
    def heads(self) -> str:
        return f"{self.q_heads}/{self.kv_heads} D={self.head_size}"

    @property
    def title(self) -> str:
        return f"attention {self.heads} {self.cache_format}"

    @property
    def scale(self) -> float | None:
        """Of keys and values that are timed; None: the cache has none."""
        return _SCALES.get(self.cache_dtype)

    @property
    def attributes(self) -> dict:
        """FdppAttention's."""
        quantization = "NONE" if self.scale is None else "PER_TENSOR"
        return {
            "num_heads": self.q_heads,
            "kv_num_heads": self.kv_heads,
            "k_quant_type": quantization,
            "v_quant_type": quantization,
        }

    def cache_shape(self, batch: int, context: int) -> tuple[int, ...]:
        """Of keys, and of values."""
        return (batch, self.kv_heads, context, self.head_size)

    def cache_bytes(self, batch: int, context: int) -> int:
        """Of keys and values."""
        return 2 * math.prod(self.cache_shape(batch, context)) * _ELEMENT_BYTES.get(self.cache_dtype, 2)


def points(shape: AttentionShape, memory_bytes: int) -> list[tuple[int, int]]:
    """Batches and contexts to time, rising, whose keys and values take no more memory than that."""
    return [(b, n) for b in BATCHES for n in CONTEXTS if shape.cache_bytes(b, n) <= memory_bytes]


def reference(shape: AttentionShape, query, key, value):
    """float64 attention [B * Hkv, group, D] of PyTorch's tensors: query [B, 1, Hq * D], caches [B, Hkv, N, D]."""
    scale = shape.scale or 1.0
    rows = query.double().view(-1, shape.q_heads // shape.kv_heads, shape.head_size)
    for row, keys, values in zip(rows, key.flatten(0, 1), value.flatten(0, 1), strict=True):
        scores = row @ (keys.double() * (scale / math.sqrt(shape.head_size))).T
        row.copy_(scores.softmax(-1) @ (values.double() * scale))
    return rows


def _is_head_size(columns: int) -> bool:
    """Whether FdppAttention has it."""
    return columns % 8 == 0 and 8 <= columns <= 256


def _shape(q_heads: int, kv_heads: int, head_size: int, dtype: str, cache_format: str | None) -> AttentionShape:
    cache_dtype = CACHE_DTYPES[cache_format] if cache_format else dtype
    if dtype not in _FLOATS:
        raise FdppError(f"attention on a GPU takes float16 and bfloat16, not {dtype}: give --dtype f16 or bf16")
    if cache_dtype in _FLOATS and cache_dtype != dtype:
        raise FdppError(f"--cache-dtype is {cache_format}, expected int8, fp8 or the activations' {dtype}")
    return AttentionShape(q_heads, kv_heads, head_size, dtype, cache_dtype)


def attention_from_text(
    texts: list[str], weight_format: str | None = None, cache_format: str | None = None
) -> list[AttentionShape]:
    """Shapes "Q_HEADS,KV_HEADS,HEAD_SIZE". `weight_format`: of the products beside them; what is no type of activations
    makes them float16. `cache_format` None: as the activations."""
    dtype = _activations(weight_format) or "float16"
    shapes = []
    for text in texts:
        numbers = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
        if len(numbers) != 3 or min(numbers) < 1:
            raise FdppError(f"attention is {text!r}, expected Q_HEADS,KV_HEADS,HEAD_SIZE, three positive whole numbers")
        q_heads, kv_heads, head_size = numbers
        if q_heads % kv_heads:
            raise FdppError(f"attention is {text!r}, expected a multiple of {kv_heads} query heads")
        if not _is_head_size(head_size):
            raise FdppError(f"attention is {text!r}, expected a head size that is a multiple of 8 up to 256")
        shapes.append(_shape(*numbers, dtype, cache_format))
    return list(dict.fromkeys(shapes))


def attention_from_model(
    path: str | Path, weight_format: str | None = None, cache_format: str | None = None
) -> list[AttentionShape]:
    """The distinct shapes of the attention nodes of a model folder or .onnx file whose past_key has a known size.
    `weight_format` and `cache_format` None: the model's own, float16 in place of float32. FdppError: unreadable."""
    _, graph = read_graph(path)
    import onnx

    types = {value.name: value.type.tensor_type for value in [*graph.input, *graph.value_info]}
    elements = {name: type_.elem_type for name, type_ in types.items()}
    elements |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    eight_bit = {onnx.TensorProto.INT8: "int8", onnx.TensorProto.FLOAT8E4M3FN: "fp8"}
    shapes = set()
    for node in graph.node:
        past_key = next(iter(node.input[_PAST_KEY:]), "")
        if (node.domain, node.op_type) not in _OPS or past_key not in types:
            continue
        heads = {attribute.name: attribute.i for attribute in node.attribute}
        head_size = types[past_key].shape.dim[3].dim_value if len(types[past_key].shape.dim) == 4 else 0
        if not _is_head_size(head_size):
            continue
        # The query's own type is rarely written down; a float cache has it, and so has cos_cache beside an 8-bit one.
        beside = [past_key, node.input[0], *node.input[_COS_CACHE : _COS_CACHE + 1]]
        own = "bfloat16" if onnx.TensorProto.BFLOAT16 in map(elements.get, beside) else "float16"
        dtype = _activations(weight_format) or own
        stored = cache_format or eight_bit.get(elements[past_key])
        shapes.add(_shape(heads["num_heads"], heads["kv_num_heads"], head_size, dtype, stored))
    return sorted(shapes)


def _activations(weight_format: str | None) -> str | None:
    """What weights say that activations are; None: nothing, being quantised."""
    return DTYPES[weight_format] if weight_format in ("f32", "f16", "bf16") else None
