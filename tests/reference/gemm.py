"""FdppFlatGemm from its statement in fdpp/gemm.h."""

from __future__ import annotations

import torch

from .precision import EXACT, Precision


def plain_product(a: torch.Tensor, b: torch.Tensor, precision: Precision) -> torch.Tensor:
    """a · bᵀ, summed over k in order as a plain loop does; libraries sum in blocks, which is better than naive."""
    y = torch.zeros(a.shape[0], b.shape[0], dtype=precision.compute)
    for column_a, column_b in zip(
        a.to(precision.compute).T.contiguous(), b.to(precision.compute).T.contiguous(), strict=True
    ):
        y.addr_(column_a, column_b)
    return y


def unpack_int4(packed: torch.Tensor, k: int) -> torch.Tensor:
    """The numbers 0 to 15 of int4 weights: uint8 [R, bytes] to [R, k]. Of the eight numbers in four bytes, low halves
    before high ones, those of even k come first."""
    halves = torch.stack((packed & 15, packed >> 4), dim=-1).view(packed.shape[0], -1, 8)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    return halves[:, :, order].flatten(1)[:, :k]


def pack_int4(numbers: torch.Tensor) -> torch.Tensor:
    """The inverse of unpack_int4; the last dimension is a multiple of 8."""
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    ordered = numbers.view(numbers.shape[0], -1, 8)[:, :, order].flatten(1)
    return (ordered[:, ::2] | ordered[:, 1::2] << 4).to(torch.uint8)


def unpack_zero_points(packed: torch.Tensor, blocks: int) -> torch.Tensor:
    """uint8 [R, bytes] to [R, blocks], the low half of a byte first."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, :blocks]


def weight_values(
    b: torch.Tensor,
    scales: torch.Tensor | None,
    zero_points: torch.Tensor | None,
    k: int,
    block_size: int,
    precision: Precision,
) -> torch.Tensor:
    """B as [R, k] in `precision`. Blocks: int4 in uint8; scales without: one a row, or one for all."""
    if block_size:
        zero = 8 if zero_points is None else unpack_zero_points(zero_points, scales.shape[1]).to(precision.compute)
        zero = torch.as_tensor(zero).expand(scales.shape).repeat_interleave(block_size, 1)[:, :k]
        scale = scales.to(precision.compute).repeat_interleave(block_size, 1)[:, :k]
        return (unpack_int4(b, k).to(precision.compute) - zero) * scale
    values = b.to(precision.compute)
    return values if scales is None else values * scales.to(precision.compute)[:, None]


def rounded_to_int8(a: torch.Tensor, block_size: int) -> torch.Tensor:
    """Each block of each row to 255 numbers around 0, its largest magnitude being the last."""
    m, k = a.shape
    blocks = torch.nn.functional.pad(a, (0, -k % block_size)).view(m, -1, block_size)
    unit = blocks.abs().amax(-1, keepdim=True) / 127
    numbers = torch.where(unit > 0, blocks / unit, 0).round()
    return (numbers * unit).view(m, -1)[:, :k]


def _activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    functional = torch.nn.functional
    if activation == "silu_mul":
        gate, up = x.chunk(2, dim=1)
        return functional.silu(gate) * up
    functions = {
        "none": lambda x: x,
        "relu": functional.relu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "silu": functional.silu,
    }
    return functions[activation](x)


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    precision: Precision,
    *,
    activation: str = "none",
    norm: str = "rms",
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    norm_epsilon: float = 1e-6,
    rounded_block: int = 0,
) -> torch.Tensor:
    """act(norm(a [M, K]) · b [R, K]ᵀ (+ bias [R])) (+ residual [M, N]) in `precision`; the result [M, N].

    rounded_block: above 0, a is rounded to int8 in blocks of that size before the product.
    """
    a, b = a.to(precision.compute), b.to(precision.compute)
    if norm_weight is not None:
        if norm == "layer":
            a = a - a.mean(-1, keepdim=True)
        mean = a.square().mean(-1, keepdim=True)
        a = a * torch.rsqrt(mean + norm_epsilon) * norm_weight.to(precision.compute)
        if norm_bias is not None:
            a = a + norm_bias.to(precision.compute)
    if rounded_block:
        a = rounded_to_int8(a, rounded_block)
    y = a @ b.T if precision is EXACT else plain_product(a, b, precision)
    if bias is not None:
        y = y + bias.to(precision.compute)
    y = _activate(y, activation)
    if residual is not None:
        y = y + residual.to(precision.compute)
    return precision.stored(y, precision.activation)
