"""The report as a page for people: one HTML file that loads nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2

from .calibrate.findings import Calibration
from .report import ExportReport

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_WIDTH, _HEIGHT, _MARGIN = 880, 300, 46
_TICKS = 8


def to_html(report: ExportReport) -> str:
    """The page of `report`."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["bytes"] = _bytes
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    ranges = None if report.calibration is None else _ranges(report.calibration)
    return template.render(report=report, ranges=ranges)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def _ranges(found: Calibration) -> dict[str, Any]:
    """The plot of each layer's scores: places in a picture of `width` x `height`."""
    lowest = min(head.minimum for layer in found.layers for head in layer.heads)
    highest = max(head.maximum for layer in found.layers for head in layer.heads)
    step = _round_step((highest - lowest) / _TICKS)
    bottom, top = math.floor(lowest / step) * step, math.ceil(highest / step) * step
    column = (_WIDTH - _MARGIN) / len(found.layers)

    def y(score: float) -> float:
        return round((top - score) / max(top - bottom, step) * (_HEIGHT - _MARGIN) + 8, 1)

    ticks = [bottom + step * i for i in range(round((top - bottom) / step) + 1)]
    layers = [
        {
            "node": layer.node,
            "number": index,
            "unified": layer.unified,
            "x": round(_MARGIN + column * (index + 0.5), 1),
            "whole": (y(max(head.maximum for head in layer.heads)), y(min(head.minimum for head in layer.heads))),
            "most": (y(max(head.high for head in layer.heads)), y(min(head.low for head in layer.heads))),
            "phi": [y(head.phi) for head in layer.heads],
        }
        for index, layer in enumerate(found.layers)
    ]
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _MARGIN,
        "bar": round(min(column * 0.4, 12), 1),
        "labelled": math.ceil(len(layers) / 32),  # every so many layers get their number
        "ticks": [(y(tick), f"{tick:g}") for tick in ticks],
        "layers": layers,
    }


def _round_step(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(step)) if step > 0 else 1
    return next((factor * power for factor in (1, 2, 5) if factor * power >= step), 10 * power)
