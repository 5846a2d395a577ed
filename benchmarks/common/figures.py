"""What the plots of benchmarks share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, told apart by all; each line has a marker of its own besides.
BLACK, BLUE, GREEN, ORANGE, PINK, RED = "#000000", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#D55E00"
LIMIT_COLOUR = "#888888"
GRID = {"color": "#dddddd", "linewidth": 0.6}


def powers_of_two(axis: plt.Axes, ticks: Iterable[float], labels: Iterable[str]) -> None:
    """A horizontal axis whose ticks are what was measured."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(ticks), list(labels))
    axis.minorticks_off()
    axis.grid(True, **GRID)


def save(figure: plt.Figure, axes: Iterable[plt.Axes], file: Path) -> None:
    """With one legend for all axes."""
    legend = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    figure.legend(legend.values(), legend.keys(), loc="lower center", ncols=len(legend), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 0.99))
    figure.savefig(file, dpi=80)
    plt.close(figure)
    print(file)
