"""Layers of both ops in the dense form: fields and tensors."""

from __future__ import annotations

from host import Tensor

GEMM, ATTENTION = "FdppFlatGemm", "FdppAttention"


def gemm_fields(n: int = 96, k: int = 256, weight_format: str = "f16", inputs: str = "A,B", **more) -> dict:
    return {"N": n, "K": k, "weight_format": weight_format, "inputs": inputs, **more}


def gemm_tensors(
    rows: int = 4,
    n: int = 96,
    k: int = 256,
    dtype: str = "float16",
    weight_format: str = "f16",
    block: int = 32,
    **more,
) -> list[Tensor]:
    """A of 1 to `rows` rows, the weights and, by name in `more`, what else there is; then Y."""
    tensors = [Tensor(dtype, (1, rows, k), (1, 1, k))]
    if weight_format in ("f16", "bf16"):
        tensors.append(Tensor(dtype, (n, k)))
    elif weight_format == "int4":
        tensors += [Tensor("int32", (n, k // 8)), Tensor(dtype, (n, k // block))]
    else:
        tensors += [Tensor("int32", (n, k // 4)), Tensor(dtype, (n,))]
    if more.get("zero_points"):
        tensors.append(Tensor("int32", ((n * ((k // block + 1) // 2) + 3) // 4,)))
    if more.get("bias"):
        tensors.append(Tensor(dtype, (n,)))
    if more.get("residual"):
        tensors.append(Tensor(dtype, (1, rows, n), (1, 1, n)))
    if more.get("next_weight"):
        tensors.append(Tensor(tensors[1].type, (2 * n, k)))
    return [*tensors, Tensor(dtype, (1, rows, n), (1, 1, n))]


def attention_fields(heads: int = 4, kv_heads: int = 2, inputs: str = "", **more) -> dict:
    names = inputs or "query,past_key,past_value,seqlens_k,total_sequence_length,cos_cache,sin_cache"
    return {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1, "inputs": names, **more}


def attention_tensors(
    batch: int = 2,
    length: int = 16,
    capacity: int = 128,
    total: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int = 64,
    dtype: str = "float16",
    cache: str = "",
    positions: int = 0,
) -> list[Tensor]:
    """A packed query of 1 to `length` new tokens, caches, and the mask that gives the total length."""
    cache_shape = (batch, kv_heads, capacity, head_size)
    past = Tensor(cache or dtype, cache_shape, (1, *cache_shape[1:]))
    width = (heads + 2 * kv_heads) * head_size
    output = heads * head_size
    return [
        Tensor(dtype, (batch, length, width), (1, 1, width)),
        past,
        past,
        Tensor("int32", (batch,), (1,)),
        Tensor("int64", (batch, total), (1, 1)),
        *[Tensor(dtype, (positions or capacity, head_size // 2))] * 2,
        Tensor(dtype, (batch, length, output), (1, 1, output)),
        past,
        past,
    ]
