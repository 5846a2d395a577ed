"""Buffers of a KV cache that hold random numbers, as after a long prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from fdpp_ort.library import import_onnxruntime

_PIECE = 1 << 24  # numbers drawn; larger buffers repeat them
_TORCH = {1: "float32", 10: "float16", 16: "bfloat16"}  # by ONNX's number
_NUMPY = {1: np.float32, 10: np.float16}


def random_cache(device: str) -> Callable | None:
    """What allocates an OrtValue of a shape and ONNX's type on `device`, filled with normal numbers. On a GPU the
    memory is PyTorch's, which gives back what the last cell had, as ONNX Runtime's arena does not. None, which stands
    for zeros, where there is no way: a GPU without PyTorch, or an ONNX Runtime without DLPack."""
    if device == "cpu":
        return by_numpy
    try:
        import torch
    except ImportError:
        return None
    if not hasattr(import_onnxruntime().OrtValue, "from_dlpack"):
        return None
    torch.cuda.empty_cache()
    return partial(by_torch, device=device)


def by_numpy(shape: tuple[int, ...], element_type: int):
    """On the CPU. bfloat16, which NumPy has not, is zeros."""
    value = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(shape, element_type, "cpu", 0)
    if element_type not in _NUMPY:
        value.update_inplace(np.zeros(shape, np.uint16))
        return value
    drawn = np.random.default_rng(0).standard_normal(min(int(np.prod(shape)), _PIECE), np.float32)
    value.update_inplace(np.resize(drawn, shape).astype(_NUMPY[element_type]))
    return value


def by_torch(shape: tuple[int, ...], element_type: int, device: str):
    import torch

    made = torch.empty(shape, dtype=getattr(torch, _TORCH[element_type]), device=device)
    drawn = torch.randn(min(made.numel(), _PIECE), device=device).to(made.dtype)
    for piece in made.view(-1).split(_PIECE):
        piece.copy_(drawn[: piece.numel()])
    if device == "cuda":
        torch.cuda.synchronize()
    return import_onnxruntime().OrtValue.from_dlpack(made)
