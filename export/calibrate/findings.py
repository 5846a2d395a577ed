"""What calibration found out, for the report. Scores are scaled query · key, as the softmax gets them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadScores:
    """Of one query head: its extreme scores, the two that hold 99.99 % between them, phi, and the share of its query
    rows that would leave the interval around phi."""

    minimum: float
    maximum: float
    low: float
    high: float
    phi: float
    leaving: float


@dataclass(frozen=True)
class LayerScores:
    """Of one attention: the interval around each head's phi, the share of all query rows that would leave it, and
    whether that is little enough for softmax_mode unified."""

    node: str
    phi_lower: float
    phi_upper: float
    leaving: float
    unified: bool
    heads: list[HeadScores]


@dataclass(frozen=True)
class Calibration:
    """text: the file. tokens: of it, in rows of at most row_tokens."""

    text: str
    tokens: int
    row_tokens: int
    layers: list[LayerScores]

    @property
    def unified(self) -> list[LayerScores]:
        """The layers that got softmax_mode unified."""
        return [layer for layer in self.layers if layer.unified]

    @property
    def leaving(self) -> float | None:
        """The share of these layers' query rows that would leave their interval; None where there is no such layer."""
        if not self.unified:
            return None
        rows = sum(len(layer.heads) for layer in self.unified)
        return sum(layer.leaving * len(layer.heads) for layer in self.unified) / rows
