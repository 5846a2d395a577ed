"""Where a head's phi had better lie, and in which interval around it scores may."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_LOG_2 = math.log(2)


@dataclass(frozen=True)
class Kernels:
    """Those that take activations of one type. lower, upper: how far scores may be from phi at most, for weights
    e^(score - phi) have to keep their digits in the type in which values are multiplied by them. first_keys: the fewest
    keys that a kernel, or one of several parts that share a row, looks at first."""

    lower: float
    upper: float
    first_keys: int


# By the type of the activations; float32 runs on CPUs, the others on GPUs.
KERNELS = {
    "float32": Kernels(-20.0, 20.0, 64),
    "float16": Kernels(-10 * _LOG_2, 15 * _LOG_2, 16),
    "bfloat16": Kernels(-60 * _LOG_2, 60 * _LOG_2, 16),
}
# Rows of a layer that may leave. One that does costs what lazy costs, and a little more.
LARGEST_SHARE = 0.005


def best_phi(low: np.ndarray, high: np.ndarray, kernels: Kernels) -> float:
    """The phi that keeps most rows within (phi + lower, phi + upper), the farthest from where a row would leave.

    low, high: float [rows], what must lie within; see `rows.py`.
    """
    first, last = high - kernels.upper, low - kernels.lower  # a row stays where first < phi < last
    stays = first < last
    if not stays.any():
        return float(np.median(first + last) / 2)
    edges = np.concatenate([first[stays], last[stays]])
    steps = np.repeat([1, -1], stays.sum())
    order = np.lexsort((steps, edges))  # of equal edges those that end first: an interval does not hold its ends
    best = int(np.argmax(np.cumsum(steps[order])))
    return float(edges[order[best]] + edges[order[best + 1]]) / 2


def share_leaving(low: np.ndarray, high: np.ndarray, phi: float, kernels: Kernels) -> float:
    """The share of the rows that do not lie within (phi + lower, phi + upper)."""
    return float(np.mean((low <= phi + kernels.lower) | (high >= phi + kernels.upper)))
