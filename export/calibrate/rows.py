"""The scores of one attention over a row of text, reduced to what phi depends on.

A kernel shares the keys of a query row out to parts, each of which looks at some first keys, then at the rest. The row
stays at phi while the largest of every part's first scores is above the interval's lower bound and all scores are below
the upper one. Which keys are whose is the kernel's affair, but none looks at fewer than `Kernels.first_keys` at first.
So it is enough that the largest score of every block of that many keys lies above the lower bound; most calls ask for
less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..dtypes import spec_name
from ..errors import ExportError
from .findings import HeadScores
from .interval import KERNELS, best_phi, share_leaving
from .probe import ProbedAttention

# Queries at a time: their scores fit the processor's cache.
_QUERIES = 128
# Quantiles come from a histogram of the scores of every so many query rows.
_SAMPLED = 16
_BINS_PER_UNIT, _FURTHEST = 8, 1024
_OUTSIDE = 5e-5  # on either side of the 99.99 % in the middle


@dataclass
class _Head:
    """low, high: of each query row the least of its blocks' largest scores, and its largest score."""

    low: list[np.ndarray] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)
    minimum: float = math.inf
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(2 * _FURTHEST * _BINS_PER_UNIT + 1, np.int64))


class ScoreRows:
    """What has been seen of one attention's scores so far."""

    def __init__(self, attention: ProbedAttention):
        self.attention = attention
        self.kernels = KERNELS[spec_name(attention.activations)]
        self._heads = [_Head() for _ in range(attention.q_heads)]

    def add(self, queries: np.ndarray, keys: np.ndarray, bias: np.ndarray | None) -> None:
        """Another row of text: queries [1, Hq, S, D] and keys [1, Hkv, S, D] as their products are scores; bias
        [1, Hq or 1, S, S]."""
        tokens = queries.shape[2]
        group = queries.shape[1] // keys.shape[1]
        for begin in range(0, tokens, _QUERIES):
            end = min(begin + _QUERIES, tokens)
            shade = _shade(begin, end, self.attention.window)
            for index, head in enumerate(self._heads):
                scores = _floats(queries[0, index, begin:end]) @ _floats(keys[0, index // group, :end]).T
                scores *= self.attention.scale
                if self.attention.softcap > 0:
                    scores = self.attention.softcap * np.tanh(scores / self.attention.softcap)
                if bias is None:
                    self._add(head, scores, shade)
                else:
                    added = _floats(bias[0, index % bias.shape[1], begin:end, :end])
                    hides = added == -np.inf
                    self._add(head, scores + np.where(hides, 0, added), np.where(hides, np.inf, shade))

    def _add(self, head: _Head, scores: np.ndarray, shade: np.ndarray) -> None:
        """scores: [queries, keys]; shade: inf where the query does not see the key, otherwise 0."""
        lowest = float((scores + shade).min())
        if math.isnan(lowest):
            raise ExportError(f"calibration: scores of {self.attention.node} are not numbers (NaN)")
        head.minimum = min(head.minimum, lowest)
        scores -= shade
        queries, keys = scores.shape
        block = self.kernels.first_keys
        blocks = np.full((queries, -(-keys // block) * block), -np.inf, np.float32)
        blocks[:, :keys] = scores
        largest = blocks.reshape(queries, -1, block).max(axis=-1)
        high = largest.max(axis=-1)
        low = np.where(largest > -np.inf, largest, np.inf).min(axis=-1)
        seen = high > -np.inf  # a bias may hide all keys: such a row says nothing
        head.low.append(low[seen])
        head.high.append(high[seen])
        sampled = scores[::_SAMPLED]
        bins = np.clip((sampled[sampled > -np.inf] + _FURTHEST) * _BINS_PER_UNIT, 0, len(head.histogram) - 1)
        head.histogram += np.bincount(bins.astype(np.int64), minlength=len(head.histogram))

    def heads(self) -> list[HeadScores]:
        """What follows for each head."""
        found = []
        for head in self._heads:
            low, high = np.concatenate(head.low), np.concatenate(head.high)
            if not low.size:
                raise ExportError(f"calibration: no query of {self.attention.node} sees a key")
            phi = best_phi(low, high, self.kernels)
            leaving = share_leaving(low, high, phi, self.kernels)
            extremes = head.minimum, float(high.max())
            found.append(HeadScores(*extremes, *_quantiles(head.histogram, extremes), phi, leaving))
        return found


def _floats(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)


def _shade(begin: int, end: int, window: int) -> np.ndarray:
    """float32 [queries, end]: inf where the queries from `begin` to `end` do not see a key, otherwise 0."""
    distance = np.arange(begin, end)[:, None] - np.arange(end)
    hidden = (distance < 0) | (distance >= window if window >= 0 else False)
    return np.where(hidden, np.inf, 0).astype(np.float32)


def _quantiles(histogram: np.ndarray, extremes: tuple[float, float]) -> tuple[float, float]:
    """The scores that hold 99.99 % between them; the extremes where the histogram does not reach as far."""
    below = np.cumsum(histogram) / histogram.sum()
    low, high = (int(np.searchsorted(below, share)) for share in (_OUTSIDE, 1 - _OUTSIDE))
    lowest, highest = extremes
    # The lower edge of the one bin and the upper edge of the other.
    return (
        max(low / _BINS_PER_UNIT - _FURTHEST, lowest) if low > 0 else lowest,
        min((high + 1) / _BINS_PER_UNIT - _FURTHEST, highest) if high < len(histogram) - 1 else highest,
    )
