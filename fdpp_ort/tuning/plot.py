"""Time over M of the three implementations, with the inflection points."""

from __future__ import annotations

import math
from pathlib import Path

from fdpp_ort.errors import FdppError
from fdpp_ort.tuning.analysis import KINDS, analyse, best_of
from fdpp_ort.tuning.measurements import Measurements

_LABELS = dict(zip(KINDS, ("A: GEMV", "B: flat GEMM", "C: library GEMM"), strict=True))
_COLUMNS = 3


def check_plots() -> None:
    """FdppError: there is no matplotlib. To be asked before hours of timing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise FdppError(f"--plot needs matplotlib ({error}); pip install matplotlib") from error


def plot(path: Path, measurements: Measurements) -> None:
    """One panel a product, each with the best time of every implementation."""
    from matplotlib.figure import Figure

    panels = list(measurements)
    rows = math.ceil(len(panels) / _COLUMNS)
    columns = min(len(panels), _COLUMNS)
    figure = Figure(figsize=(4.5 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (product, times) in zip(axes, panels, strict=False):
        for kind in KINDS:
            points = [(m, best.microseconds) for m, row in times.items() if (best := best_of(row, kind))]
            if points:
                axis.plot(*zip(*points, strict=True), marker=".", label=_LABELS[kind])
        inflection = analyse(times)
        for name, m in (("M1", inflection.m1), ("M2", inflection.m2)):
            if m == 1:  # the kind before is never chosen
                continue
            axis.axvline(m - 0.5, color="gray", linestyle=":")
            axis.annotate(f"{name}={m}", (m - 0.5, 1), xycoords=("data", "axes fraction"), rotation=90, va="top")
        axis.set_title(product.title, fontsize=9)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("M")
        axis.set_ylabel("µs")
    for axis in axes[len(panels) :]:
        axis.remove()
    axes[0].legend()
    device = measurements.head["device"]
    figure.suptitle(f"FdppFlatGemm on {device['name']}")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise FdppError(f"{path}: the plot cannot be written: {error}") from error
