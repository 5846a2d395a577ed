"""Raises M and times every variant and split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from fdpp_ort.errors import FdppError
from fdpp_ort.library import core
from fdpp_ort.tuning.analysis import KINDS, best_of
from fdpp_ort.tuning.measurements import Candidate, Measurements, Timed
from fdpp_ort.tuning.products import Product

# Every row while GEMVs take them, then both sides of where kernels pad to 8 and 16.
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_HOPELESS = 3.0


class Timer(Protocol):
    """What times a device's kernels."""

    device: dict

    def measure(self, product: Product, m: int, candidates: list[Candidate]) -> list[Timed]: ...


def make_timer(backend: str, seconds: float, pool_bytes: int = 0) -> Timer:
    """`seconds`: roughly, of each candidate at each M."""
    if backend == "cpu":
        from fdpp_ort.tuning.cpu import CpuTimer

        return CpuTimer(seconds, pool_bytes)
    from fdpp_ort.tuning.cuda import CudaTimer

    return CudaTimer(seconds, pool_bytes)


def candidates(product: Product, m: int, device: dict) -> list[Candidate]:
    """Every way to run the product on the device. FdppError: there is none."""
    found, refusals = [], []
    for v in core().variants():
        if (v["op"], v["backend"]) != ("FdppFlatGemm", device["backend"]):
            continue
        try:
            splits = core().gemm_splits(product.problem(m), device, v["name"])
        except NotImplementedError as error:
            refusals.append(str(error))
            continue
        found += [Candidate.of(v["kind"], v["name"], split) for split in splits]
    if not found:
        reasons = "; ".join(refusals) or f"this build has none for {device['backend']}"
        raise FdppError(f"{product.title}, M={m}: no kernel takes it ({reasons})")
    return found


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
) -> None:
    """Adds to `measurements` what they lack. `progress` is called with what is being timed, how many pairs of product
    and M are done and how many there are."""
    wanted = [(product, m) for product in products for m in sorted(set(rows))]
    for done, (product, m) in enumerate(wanted):
        progress(product.title, done, len(wanted))
        if m not in measurements.of(product):
            slow = _hopeless([times for row, times in measurements.of(product).items() if row < m])
            left = [c for c in candidates(product, m, timer.device) if c not in slow]
            measurements.add(product, m, timer.measure(product, m, left))
    progress("tuned", len(wanted), len(wanted))
