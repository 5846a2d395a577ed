"""What is timed: one implementation, prepared for one case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from common.accuracy import LARGEST_ERROR_PEER, WrongResult, relative_error

from attention.operands import Operands, Sample, reference
from fdpp_ort import _core

# Of our result in float16 against float64, and of 8-bit values that were appended.
LARGEST_ERROR = 2e-3
LARGEST_ERROR_8BIT = 6e-2


@dataclass
class Candidate:
    operands: Operands
    run: Callable[[int], torch.Tensor]  # one call over a set; its result, viewable as [B, S, Hq, D]
    layout: str = "dense"  # how it reads the caches
    query: torch.Tensor | None = None  # what the scores are of, where it is not the operands' query
    new_key: torch.Tensor | None = None  # what it appends; None: nothing
    limit: float = LARGEST_ERROR_PEER
    note: str = ""  # kernel, splits
    counter: _core.DeviceCounter | None = None  # of query rows that left the interval around phi
    keeps: tuple = ()  # what must live as long as `run`

    @property
    def sets(self) -> int:
        return self.operands.sets

    def check(self) -> float:
        """Relative error of a call over the last set. Raises WrongResult where it is no rounding error."""
        operands, case = self.operands, self.operands.case
        sample = Sample.of(case, operands.query.device)
        last = operands.sets - 1
        result = self.run(last).view(case.batch, case.queries, case.q_heads, case.head_size)
        query = operands.query if self.query is None else self.query
        expected = reference(operands, sample, self.layout, query, last)
        error = relative_error(sample.take(result), expected)
        if not error < self.limit:
            raise WrongResult(f"relative error {error:.1e}, expected less than {self.limit:.0e}")
        if self.new_key is not None:
            self._check_append(last)
        return error

    def _check_append(self, index: int) -> None:
        operands, case = self.operands, self.operands.case
        scale = operands.pool.scale
        limit = self.limit if scale is None else LARGEST_ERROR_8BIT
        place = slice(case.context - case.queries, case.context)
        for name, cache, new in zip(
            ("keys", "values"), operands.caches[index], (self.new_key, operands.value), strict=True
        ):
            stored = cache[:, :, place].double() * (scale or 1.0)
            error = relative_error(stored, new.transpose(1, 2))
            if not error < limit:
                raise WrongResult(f"appended {name}: relative error {error:.1e}, expected less than {limit:.0e}")
