"""What is timed: one implementation, prepared for one case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gemm.operands import Expected


@dataclass
class Candidate:
    run: Callable[[int], torch.Tensor]  # one call over a set; its result [M, N]
    sets: int
    expected: Expected  # of set 0
    output: torch.Tensor | None = None  # where the result will lie, if that is known beforehand
    limit: float | None = None  # of the relative error; None: the tests' rule
    note: str = ""
    keeps: tuple = ()  # what must live as long as `run`

    def check(self) -> float:
        """Relative error of a call over the first set. Raises WrongResult where it is no rounding error."""
        if self.output is not None:
            self.output.fill_(torch.nan)
        return self.expected.check(self.run(0), self.limit)
