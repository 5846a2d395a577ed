"""How far a result may be from float64."""

from __future__ import annotations

import torch

LARGEST_ERROR_PEER = 5e-3  # of a peer's result, which need only show that it computes the same


class WrongResult(Exception):
    """The candidate ran, but what it computed is something else."""


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """NaN where the result has one."""
    return ((result.double() - expected.double()).norm() / expected.double().norm()).item()
