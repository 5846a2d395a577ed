"""Tokens/s over the batch, a panel a context."""

from __future__ import annotations

import math
from pathlib import Path

from fdpp_ort.bench.cells import DECODE
from fdpp_ort.errors import FdppError

_COLUMNS = 3
_MARKERS = "osD^vP*Xh<>p"


def plot(path: Path, content: dict) -> None:
    """FdppError: the file cannot be written."""
    from matplotlib.figure import Figure

    decode = [row for row in content["rows"] if row["phase"] == DECODE]
    contexts = sorted({row["tokens"] for row in decode})
    rows, columns = math.ceil(len(contexts) / _COLUMNS), min(len(contexts), _COLUMNS)
    figure = Figure(figsize=(4.5 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    names = [candidate["name"] for candidate in content["candidates"] if not candidate["absent"]]
    for axis, context in zip(axes, contexts, strict=False):
        here = sorted((row for row in decode if row["tokens"] == context), key=lambda row: row["batch"])
        limits = [(row["batch"], 1e3 * row["batch"] / row["limit_ms"]) for row in here if row["limit_ms"]]
        if limits:
            axis.plot(*zip(*limits, strict=True), color="gray", linestyle=":", label="byte limit")
        for name, marker in zip(names, _MARKERS, strict=False):
            points = [(row["batch"], row["tokens_per_second"][name]) for row in here if name in row["ms"]]
            if points:
                axis.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=name)
        axis.set_title(f"context {context}", fontsize=9)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("rows")
        axis.set_ylabel("tokens/s")
        axis.grid(True, color="#dddddd", linewidth=0.6)
    for axis in axes[len(contexts) :]:
        axis.remove()
    axes[0].legend(fontsize=7)
    machine = content["runs"][-1]
    figure.suptitle(f"{content['model']}: {machine['gpu'] or machine['cpu']}, {machine['date'][:10]}", fontsize=10)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise FdppError(f"{path}: the plot cannot be written: {error}") from error
