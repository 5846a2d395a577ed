"""What is timed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DECODE, PREFILL = "decode", "prefill"


@dataclass(frozen=True)
class Cell:
    """DECODE: a step of `batch` rows in which each attends to `tokens` tokens, its own included. PREFILL: `batch`
    prompts of `tokens` tokens."""

    phase: str
    batch: int
    tokens: int

    @property
    def key(self) -> str:
        return f"{self.phase} {self.batch}x{self.tokens}"


def list_cells(batches: Iterable[int], contexts: Iterable[int], prompts: Iterable[int]) -> list[Cell]:
    """In the order in which they are measured: the given one, all batches of a context side by side. Prompts, one row
    each, come after the first context."""
    batches, (first, *others) = list(batches), list(contexts)
    cells = [Cell(DECODE, batch, first) for batch in batches]
    cells += [Cell(PREFILL, 1, tokens) for tokens in prompts]
    return cells + [Cell(DECODE, batch, context) for context in others for batch in batches]
