"""Raises M, and batch and context of attention, and times every variant and split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from fdpp_ort.tuning.analysis import KINDS, best_of
from fdpp_ort.tuning.attention import AttentionShape, points
from fdpp_ort.tuning.candidates import candidates
from fdpp_ort.tuning.measurements import Candidate, Measurements, Timed
from fdpp_ort.tuning.products import Product

# Every row while GEMVs take them, then both sides of where kernels pad to 8 and 16.
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_HOPELESS = 3.0


class Timer(Protocol):
    """What times a device's kernels."""

    device: dict

    def measure(self, product: Product, m: int, candidates: list[Candidate]) -> list[Timed]: ...


class GpuTimer(Timer, Protocol):
    cache_bytes: int  # that keys and values of a call may take

    def measure_attention(self, shape: AttentionShape, batch: int, context: int) -> list[Timed]:
        """Of every way to run it, the library's own choice first."""


def make_timer(backend: str, seconds: float, pool_bytes: int = 0) -> Timer:
    """`seconds`: roughly, of each candidate at each M."""
    if backend == "cpu":
        from fdpp_ort.tuning.cpu import CpuTimer

        return CpuTimer(seconds, pool_bytes)
    from fdpp_ort.tuning.cuda import CudaTimer

    return CudaTimer(seconds, pool_bytes)


def _hopeless(earlier: list[list[Timed]]) -> set[Candidate]:
    """What was so much slower than the best of its kind at an earlier M that more of them say nothing new."""
    slow = set()
    for times in earlier:
        for kind in KINDS:
            if (best := best_of(times, kind)) is not None:
                limit = _HOPELESS * best.microseconds
                slow |= {t.candidate for t in times if t.candidate.kind == kind and t.microseconds > limit}
    return slow


def tune(
    products: Iterable[Product],
    rows: Iterable[int],
    timer: Timer,
    measurements: Measurements,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    attention: Iterable[AttentionShape] = (),
) -> None:
    """Adds to `measurements` what they lack. `progress` is called with what is being timed, how many pairs of product
    and M, or of attention and its batch and context, are done and how many there are. `attention` needs a GpuTimer."""
    wanted = [(product, m) for product in products for m in sorted(set(rows))]
    wanted += [(shape, point) for shape in attention for point in points(shape, timer.cache_bytes)]
    for done, (what, point) in enumerate(wanted):
        progress(what.title, done, len(wanted))
        if point in measurements.of(what):
            continue
        if isinstance(what, AttentionShape):
            times = timer.measure_attention(what, *point)
        else:
            slow = _hopeless([times for row, times in measurements.of(what).items() if row < point])
            left = [c for c in candidates(what, point, timer.device) if c not in slow]
            times = timer.measure(what, point, left)
        measurements.add(what, point, times)
    progress("tuned", len(wanted), len(wanted))
