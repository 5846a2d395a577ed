"""Choosing the next token."""

from __future__ import annotations

import numpy as np

from fdpp_ort.errors import FdppError


def refuse_nan(found: bool) -> None:
    """FdppError where logits hold one."""
    if found:
        raise FdppError("the model's logits hold NaN")


def likeliest(logits: np.ndarray) -> np.ndarray:
    """`logits` float [B, vocabulary] -> token ids int64 [B], of equal logits the first. FdppError: a NaN among them."""
    refuse_nan(np.isnan(logits).any())
    return logits.argmax(axis=-1)


class Sampler:
    """Greedy at temperature 0, otherwise draws from softmax(logits / temperature), cut to the `top_k` likeliest tokens
    (0: all) and then to the fewest whose probabilities reach `top_p`. The same seed draws the same tokens."""

    def __init__(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None):
        if not (np.isfinite(temperature) and temperature >= 0):
            raise FdppError(f"temperature is {temperature}, expected 0 (greedy) or more")
        if top_k < 0:
            raise FdppError(f"top_k is {top_k}, expected 0 (all tokens) or more")
        if not 0 < top_p <= 1:
            raise FdppError(f"top_p is {top_p}, expected more than 0 and at most 1")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self._random = np.random.default_rng(seed)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def pick(self, logits: np.ndarray) -> np.ndarray:
        """`logits` float [B, vocabulary] -> token ids int64 [B]. FdppError: a NaN among them."""
        if self.is_greedy:
            return likeliest(logits)
        refuse_nan(np.isnan(logits).any())
        return np.array([self._draw(row) for row in logits.astype(np.float64)])

    def _draw(self, logits: np.ndarray) -> int:
        order = np.argsort(-logits, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        scaled = (logits[order] - logits[order[0]]) / self.temperature
        weights = np.exp(scaled)
        weights /= weights.sum()
        if self.top_p < 1:
            kept = int(np.searchsorted(np.cumsum(weights), self.top_p)) + 1
            order, weights = order[:kept], weights[:kept] / weights[:kept].sum()
        return int(self._random.choice(order, p=weights))
