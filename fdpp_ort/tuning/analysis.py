"""From times over M to the inflection points M1 and M2 and to the best configuration between them; and from those of
attention to the best one for each batch and context."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate

from fdpp_ort.library import core
from fdpp_ort.tuning.measurements import Candidate, Timed

KINDS = ("gemv", "flat", "large")  # the paper's implementations A, B and C
# A configuration stays on from one M to the next until another one beats it by this factor: less is noise.
_WORTH_CHANGING = 1.02
# What a kind loses against the best at one M counts up to here (in logarithms): one figure that somebody else's work
# on the machine spoiled then does not move a cut. What cannot run loses more than all Ms together.
_MOST_LOSS = 0.25
_CANNOT_RUN = 1e3


@dataclass(frozen=True)
class Range:
    """From M = `first` to where the next one starts."""

    first: int
    candidate: Candidate


@dataclass(frozen=True)
class AttentionRange:
    """From this batch and context to where the next one starts."""

    batch: int
    context: int
    candidate: Candidate


@dataclass(frozen=True)
class Inflection:
    """gemv for M < m1, flat for m1 <= M < m2, the library's product from m2 on."""

    m1: int
    m2: int
    ranges: tuple[Range, ...]


def analyse_attention(times: dict[tuple[int, int], list[Timed]]) -> list[AttentionRange]:
    """`times` by batch and context, rising. As for products, what was found at one holds from beyond the one before it
    on, batches and contexts alike."""
    batches: dict[int, dict[int, list[Timed]]] = {}
    for (batch, context), row in times.items():
        batches.setdefault(batch, {})[context] = row
    found: list[AttentionRange] = []
    before: list[Range] = []  # of the batches below
    first_batch = 1
    for batch, rows in batches.items():
        ranges: list[Range] = []
        first = 1
        for context, row in rows.items():
            best = min(row, key=lambda t: t.microseconds)
            _append(ranges, first, _stay(row, best, ranges or before[:1]))
            first = context + 1
        if ranges != before:
            found += [AttentionRange(first_batch, r.first, r.candidate) for r in ranges]
        before, first_batch = ranges, batch + 1
    return found


def best_of(times: list[Timed], kind: str) -> Timed | None:
    """The fastest of a kind; None: none takes the problem."""
    return min((t for t in times if t.candidate.kind == kind), key=lambda t: t.microseconds, default=None)


def analyse(times: dict[int, list[Timed]]) -> Inflection:
    """`times` by M, rising. What was found at an M holds from beyond the M before it on: kernels pad rows upwards."""
    rows = list(times)
    first = [1] + [m + 1 for m in rows]  # of the stretch that each M stands for, and of what lies beyond them all
    gemvs, larges = _cuts(times)
    ranges: list[Range] = []
    for i, m in enumerate(rows):
        kind = "gemv" if i < gemvs else "flat" if i < larges else "large"
        _extend(ranges, first[i], m, _choose(times[m], kind, ranges))
    # Where rows are many the library's product wins, whether it did so among those timed or not.
    if (library := best_of(times[rows[-1]], "large")) is not None:
        _append(ranges, first[-1], replace(library.candidate, split=()))
    return Inflection(first[gemvs], first[larges], tuple(ranges))


def _cuts(times: dict[int, list[Timed]]) -> tuple[int, int]:
    """How many of the smallest Ms are gemv's, and at which the library's product begins: the pair that loses least."""
    losses = {kind: [_loss(row, kind) for row in times.values()] for kind in KINDS}
    sums = {kind: [0.0, *accumulate(values)] for kind, values in losses.items()}
    count = len(times)

    def total(cuts: tuple[int, int]) -> float:
        a, b = cuts
        return sums["gemv"][a] + sums["flat"][b] - sums["flat"][a] + sums["large"][count] - sums["large"][b]

    return min(((a, b) for a in range(count + 1) for b in range(a, count + 1)), key=total)


def _loss(times: list[Timed], kind: str) -> float:
    if (own := best_of(times, kind)) is None:
        return _CANNOT_RUN
    return min(math.log(own.microseconds / min(t.microseconds for t in times)), _MOST_LOSS)


def _choose(times: list[Timed], kind: str, ranges: list[Range]) -> Candidate:
    return _stay(times, best_of(times, kind) or min(times, key=lambda t: t.microseconds), ranges)


def _stay(times: list[Timed], best: Timed, ranges: list[Range]) -> Candidate:
    """The last range's candidate unless `best` is worth a change."""
    if ranges:
        for t in times:
            if t.candidate == ranges[-1].candidate and t.microseconds <= _WORTH_CHANGING * best.microseconds:
                return t.candidate
    return best.candidate


def _extend(ranges: list[Range], first: int, m: int, candidate: Candidate) -> None:
    # A library numbers its algorithms anew for each number of rows that it is asked about: a number says nothing about
    # the Ms for which that is another. A kernel's does.
    if candidate.kind == "large" and dict(candidate.split).get("algorithm", 0):
        library_rows = core().library_rows
        same = next(row for row in range(first, m + 1) if library_rows(row) == library_rows(m))
        if same > first:
            own_first = tuple((name, value) for name, value in candidate.split if name != "algorithm")
            _append(ranges, first, replace(candidate, split=own_first))
            first = same
    _append(ranges, first, candidate)


def _append(ranges: list[Range], first: int, candidate: Candidate) -> None:
    if not ranges or ranges[-1].candidate != candidate:
        ranges.append(Range(first, candidate))
