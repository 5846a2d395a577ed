"""8-bit KV caches: which number is stored for a value, and for which value a stored number stands."""

from __future__ import annotations

import torch

# The largest and smallest number of each type.
LIMITS = {torch.int8: (-128.0, 127.0), torch.float8_e4m3fn: (-448.0, 448.0)}


def quantise(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """round(x / scale), ties to even, saturated; scale of one element or [1, heads, 1, D] for x [B, heads, S, D]."""
    numbers = (x / scale.to(x.dtype)).clamp(*LIMITS[dtype])
    return (numbers.round() if dtype == torch.int8 else numbers).to(dtype)


def dequantise(stored: torch.Tensor, scale: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    return stored.to(compute) * scale.to(compute)


def assert_stored(
    stored: torch.Tensor, exact: torch.Tensor, naive: torch.Tensor, scale: torch.Tensor, size: torch.Tensor, what: str
) -> None:
    """Fails unless each number is the one that ``exact`` (float64) is stored as, or its neighbour where the value lies
    so close to the boundary of the two that float32 arithmetic cannot tell: within twice the naive computation's error
    (the largest, in proportion to ``size``) and two units in the last place of ``size``."""
    assert stored.shape == exact.shape, f"{what} has shape {tuple(stored.shape)}, expected {tuple(exact.shape)}"
    if stored.numel() == 0:
        return
    naive_error = ((naive.double() - exact).abs() / size.clamp(min=torch.finfo(torch.float64).tiny)).amax()
    margin = (2 * naive_error + 2 * torch.finfo(torch.float32).eps) * size
    number = stored.cpu().double()
    lowest, highest = (quantise(exact + shift, scale, stored.dtype).double() for shift in (-margin, margin))
    wrong = ~((lowest <= number) & (number <= highest))
    if wrong.any():
        index = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} stored numbers are off; the first at {list(index)} is "
            f"{number[index].item():.9g}, expected {lowest[index].item():.9g} to {highest[index].item():.9g} for "
            f"{(exact / scale.double())[index].item():.9g}"
        )
