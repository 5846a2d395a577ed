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


def gemm(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, precision: Precision
) -> torch.Tensor:
    """a [M, K] · b [N, K]ᵀ (+ bias [N]) (+ residual [M, N]) in `precision`; the result [M, N]."""
    y = a.to(precision.compute) @ b.to(precision.compute).T if precision is EXACT else plain_product(a, b, precision)
    if bias is not None:
        y = y + bias.to(precision.compute)
    if residual is not None:
        y = y + residual.to(precision.compute)
    return precision.stored(y, precision.activation)
