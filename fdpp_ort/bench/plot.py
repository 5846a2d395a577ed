"""A decoding step's time over the batch, a panel a context: ours beside the peers', and ours with a technique off."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fdpp_ort.bench.candidates import NO_T1, NO_T2, NO_T3, reference_among
from fdpp_ort.bench.cells import DECODE
from fdpp_ort.errors import FdppError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_OFF_SCALE = 4  # times the fastest: such a line would flatten all others, so its figures are written instead


@dataclass(frozen=True)
class _Style:
    title: str
    colour: str
    marker: str
    line: str = "-"
    width: float = 1.5


# The same in the plots of all models; the order is the legend's.
_STYLES = {
    "fdpp": _Style("fdpp", "#d55e00", "o", width=2.8),
    "fdpp-graph": _Style("fdpp", "#d55e00", "o", width=2.8),
    "ort": _Style("ONNX Runtime", "#0072b2", "s"),
    "ort-graph": _Style("ONNX Runtime", "#0072b2", "s"),
    "genai": _Style("GenAI", "#009e73", "*"),
    "genai-no-graph": _Style("GenAI, no CUDA graph", "#009e73", "^", "--"),
    "hf": _Style("Hugging Face eager", "#666666", "D"),
    "compile": _Style("torch.compile", "#cc79a7", "X"),
    "vllm": _Style("vLLM", "#8c6d00", "P"),
}
_ABLATIONS = {
    NO_T1: _Style("T1 off: online softmax", "#0072b2", "s"),
    NO_T2: _Style("T2 off: products by the library", "#d55e00", "o"),
    NO_T3: _Style("T3 off: products by the flat kernel alone", "#009e73", "^"),
}
_CAPTURED = {"fdpp": "fdpp-graph", "ort": "ort-graph"}  # the first is not drawn where the second was measured


def plot(path: Path, content: dict) -> list[Path]:
    """Draws `content`, the results of bench_model(), at `path` and, where ablations were measured, those at the same
    name with -ablations. Returns what it wrote. FdppError: a file cannot be written."""
    figures = {path: draw_peers(content)}
    if (ablations := draw_ablations(content)) is not None:
        figures[path.with_stem(f"{path.stem}-ablations")] = ablations
    for file, figure in figures.items():
        try:
            figure.savefig(file, dpi=150)
        except (OSError, ValueError) as error:
            raise FdppError(f"{file}: the plot cannot be written: {error}") from error
    return list(figures)


def draw_peers(content: dict) -> Figure:
    """Milliseconds a step, and the byte limit where it is known."""
    measured = _measured(content)
    names = [name for name in _STYLES if name in measured and _CAPTURED.get(name) not in measured]
    captured = {candidate["name"] for candidate in content["candidates"] if candidate["cuda_graph"]}
    figure, panels = _panels(content, "ms a step (less is better)")
    for axis, rows in panels:
        _logarithmic(axis)
        limits = [(row["batch"], row["limit_ms"]) for row in rows if row["limit_ms"]]
        if limits:
            axis.plot(*zip(*limits, strict=True), color="black", linestyle=":", linewidth=1.5, label="byte limit")
        notes = []
        for name in names:
            style = _STYLES[name]
            title = style.title + (", CUDA graph" if name in captured else "")
            points = [(row["batch"], row["ms"][name]) for row in rows if name in row["ms"]]
            if not points:
                continue
            if _is_off_scale(name, rows):
                values = [value for _, value in points]
                notes.append(f"{title}: {min(values):.3g} to {max(values):.3g} ms")
            else:
                _line(axis, points, style, title)
        axis.text(0.03, 0.97, "\n".join(notes), transform=axis.transAxes, va="top", fontsize=8, color="#444444")
    return _finished(figure, f"{content['model']}, {_place(content)}: a decoding step")


def draw_ablations(content: dict) -> Figure | None:
    """How many times as long a step takes with a technique off; None where none was measured."""
    measured = _measured(content)
    ours = reference_among(measured)
    names = [name for name in _ABLATIONS if name in measured]
    if ours is None or not names:
        return None
    figure, panels = _panels(content, "time of a step, all techniques on = 1", one_scale=True)
    for axis, rows in panels:
        axis.axhline(1, color="black", linestyle=":", linewidth=1.5)
        for name in names:
            points = [
                (row["batch"], row["ms"][name] / row["ms"][ours]) for row in rows if {name, ours} <= set(row["ms"])
            ]
            if points:
                _line(axis, points, _ABLATIONS[name], _ABLATIONS[name].title)
    return _finished(figure, f"{content['model']}, {_place(content)}: a decoding step with a technique off")


def _decode_rows(content: dict) -> list[dict]:
    return [row for row in content["rows"] if row["phase"] == DECODE]


def _measured(content: dict) -> set[str]:
    return {name for row in _decode_rows(content) for name in row["ms"]}


def _panels(content: dict, what: str, one_scale: bool = False) -> tuple[Figure, Iterator[tuple[Axes, list[dict]]]]:
    """A figure, and its panels with their rows of results, the smallest batch first. one_scale: of all panels."""
    from matplotlib.figure import Figure

    decode = sorted(_decode_rows(content), key=lambda row: row["batch"])
    contexts = sorted({row["tokens"] for row in decode})
    lines, columns = math.ceil(len(contexts) / _COLUMNS), min(len(contexts), _COLUMNS)
    figure = Figure(figsize=(max(3.8 * columns, 6), 3.6 * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=one_scale).flatten()
    for axis in axes[len(contexts) :]:
        axis.remove()
    batches = sorted({row["batch"] for row in decode})
    for position, (axis, context) in enumerate(zip(axes, contexts, strict=False)):
        axis.set_title(f"{context} tokens of context", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.minorticks_off()
        axis.set_xlabel("batch")
        axis.grid(True, color="#e4e4e4", linewidth=0.6)
        if position % _COLUMNS == 0:
            axis.set_ylabel(what)
    rows = ([row for row in decode if row["tokens"] == context] for context in contexts)
    return figure, zip(axes, rows, strict=False)


def _logarithmic(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _is_off_scale(name: str, rows: list[dict]) -> bool:
    times = [row["ms"][name] / min(row["ms"].values()) for row in rows if name in row["ms"]]
    return statistics.median(times) > _OFF_SCALE


def _line(axis: Axes, points: list[tuple[int, float]], style: _Style, title: str) -> None:
    axis.plot(
        *zip(*points, strict=True),
        color=style.colour,
        linestyle=style.line,
        linewidth=style.width,
        marker=style.marker,
        markersize=9 if style.marker == "*" else 5,
        label=title,
    )


def _finished(figure: Figure, title: str) -> Figure:
    """With one legend for all panels, whichever drew a line first."""
    drawn = {}
    for axis in figure.axes:
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True):
            drawn.setdefault(label, line)
    if drawn:
        figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=_COLUMNS, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def _place(content: dict) -> str:
    machine = content["runs"][-1]
    # Ahead of the comma: behind it comes the driver.
    return f"{(machine['gpu'] or machine['cpu']).partition(',')[0]}, {machine['date'][:10]}"
