"""Random numbers into an OrtValue where it lies."""

from __future__ import annotations

import numpy as np

_PIECE = 1 << 24
# By ONNX's number: NumPy's name of as many bits, PyTorch's type.
_FLOAT32, _FLOAT16, _BFLOAT16 = 1, 10, 16
_TYPES = {_FLOAT32: ("<f4", "float32"), _FLOAT16: ("<f2", "float16"), _BFLOAT16: ("<i2", "bfloat16")}


class _OnDevice:
    """The memory of an OrtValue as other libraries may take it."""

    def __init__(self, value, kind: str):
        self.owner = value
        shape, address = tuple(value.shape()), (value.data_ptr(), False)
        self.__cuda_array_interface__ = {"shape": shape, "typestr": kind, "data": address, "version": 3}


def fill_random(value) -> None:
    """Normal numbers, float32, float16 or bfloat16. On a GPU PyTorch draws them; without it they are zeros, since all
    of a large cache would go through the host's memory."""
    kind, name = _TYPES[value.element_type()]
    if value.device_name() == "cuda":
        _fill_on_gpu(value, kind, name)
        return
    shape = value.shape()
    if value.element_type() == _BFLOAT16:
        value.update_inplace(np.zeros(shape, np.uint16))
        return
    drawn = np.random.default_rng(0).standard_normal(min(int(np.prod(shape)), _PIECE), np.float32)
    value.update_inplace(np.resize(drawn, shape).astype(kind))


def _fill_on_gpu(value, kind: str, name: str) -> None:
    try:
        import torch
    except ImportError:
        value.update_inplace(np.zeros(value.shape(), "<u2" if kind == "<i2" else kind))
        return
    flat = torch.as_tensor(_OnDevice(value, kind), device="cuda").view(-1)
    drawn = torch.randn(min(flat.numel(), _PIECE), device="cuda").to(getattr(torch, name)).view(flat.dtype)
    for piece in flat.split(_PIECE):
        piece.copy_(drawn[: piece.numel()])
    torch.cuda.synchronize()
