"""Random numbers in one piece of memory, of which the operands of all cases are views."""

from __future__ import annotations

import torch

FILL_ELEMENTS = 1 << 28


class Pool:
    """Normal numbers: float16, or 8-bit values of them with one scale. uint8: any bytes."""

    SCALES = {torch.float16: None, torch.uint8: None, torch.int8: 1 / 32, torch.float8_e4m3fn: 1 / 8}

    def __init__(self, size_bytes: int, dtype: torch.dtype = torch.float16, device: str = "cuda"):
        self.dtype = dtype
        self.scale = self.SCALES[dtype]
        self.data = torch.empty(size_bytes // dtype.itemsize, dtype=dtype, device=device)
        if self.scale is None:
            for chunk in self.data.split(FILL_ELEMENTS):
                chunk.random_(0, 256) if dtype == torch.uint8 else chunk.normal_()
            return
        # Drawn once and repeated: equal values at other addresses come from memory no faster.
        one = torch.randn(min(FILL_ELEMENTS, self.data.numel()), device=device) / self.scale
        one = (one.round().clamp(-128, 127) if dtype == torch.int8 else one).to(dtype).view(torch.uint8)
        for chunk in self.data.view(torch.uint8).split(FILL_ELEMENTS):
            chunk.copy_(one[: chunk.numel()])

    @property
    def size_bytes(self) -> int:
        return self.data.numel() * self.dtype.itemsize
