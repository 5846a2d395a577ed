"""Plots of bench_gemm.py's results.

    plot_gemm.py RESULTS.json --output-dir FOLDER [--table TABLE.json]

Time over M, a figure for each model and in it a panel for each weight, with the inflection points M1 and M2 of the
table; the part of the read bandwidth, as bars; the static dataflows; int4; the paper's T2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
from common import results
from common.figures import BLACK, BLUE, GREEN, GRID, LIMIT_COLOUR, ORANGE, PINK, RED, powers_of_two, save
from gemm import cases, report

LINES = {  # title: (candidates of which the fastest counts, colour, marker)
    "FdppFlatGemm": (("ours",), BLACK, "o"),
    "cuBLAS": (("cublas",), BLUE, "s"),
    "cuBLASLt, best algorithm": (("cublaslt",), GREEN, "^"),
    "ONNX Runtime": (("ort",), RED, "*"),
    "torch.compile": (("compile",), PINK, "v"),
}
STATIC_LINES = {"gemv": (ORANGE, "D"), "flat": (BLUE, "s"), "large": (GREEN, "^")}
T2_STAGES = (
    ("stages_1", "one stage", ORANGE, "D"),
    ("stages_2", "two stages", BLUE, "s"),
    ("stages_most", "the most stages it has", BLACK, "o"),
)
T2_PADDING = (("pad_64", "64", RED, "v"), ("pad_8", "8", BLACK, "o"), ("cublas", "cuBLAS, M = 8", GREEN, "^"))
BAR_ROWS = (1, 8, 16)
WIDE, HIGH = 3.6, 3.4  # of a panel, in inches


def of_part(content: dict, part: str) -> list[dict]:
    return [row for row in content["rows"] if row["part"] == part]


def ceiling(content: dict, row: dict) -> float:
    return content["runs"][row["run"]]["read_ceiling"]


def line(axis: plt.Axes, points: list[tuple], title: str, colour: str, marker: str, width: float = 1.1) -> None:
    """Points whose second number is None were not measured."""
    points = [point for point in points if point[1] is not None]
    if points:
        axis.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=width, label=title)


def inflections(table: dict | None, n: int, k: int) -> dict[str, int]:
    """M1 and M2 of a weight in float16, where the table has it."""
    for entry in table["gemm"] if table else ():
        shape = (entry["n"], entry["k"], entry["weight_format"], entry["epilogue"])
        if shape == (n, k, "f16", "plain"):
            return {"M1": entry["m1"], "M2": entry["m2"]}
    return {}


def time_over_rows(content: dict, model: str, table: dict | None, folder: Path) -> None:
    rows = of_part(content, "main")
    shapes = [shape for shape in dict.fromkeys(cases.MODELS[model]) if any(report.shape_of(r) == shape for r in rows)]
    if not shapes:
        return
    figure, grid = plt.subplots(1, len(shapes), figsize=(WIDE * len(shapes), HIGH), squeeze=False)
    axes = list(grid[0])
    for axis, shape in zip(axes, shapes, strict=True):
        group = sorted((row for row in rows if report.shape_of(row) == shape), key=lambda row: row["m"])
        ms = [row["m"] for row in group]
        powers_of_two(axis, ms, map(str, ms))
        limit = [(row["m"], row["bytes"] / ceiling(content, row) * 1e6) for row in group]
        axis.plot(*zip(*limit, strict=True), color=LIMIT_COLOUR, linestyle="--", linewidth=1, label="plain read kernel")
        for title, (names, colour, marker) in LINES.items():
            points = [(row["m"], row["us"].get(results.fastest(row, names))) for row in group]
            line(axis, points, title, colour, marker, 2 if names == ("ours",) else 1.1)
        for name, m in inflections(table, *shape).items():
            if 1 < m <= ms[-1]:
                axis.axvline(m, color=ORANGE, linestyle=":", linewidth=1.2, label="M1, M2 of the table")
                axis.annotate(name, (m, 0.02), xycoords=("data", "axes fraction"), fontsize=8)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{cases.ROLES[cases.MODELS[model].index(shape)]}: {shape[0]} x {shape[1]}", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("M", fontsize=9)
    axes[0].set_ylabel("µs", fontsize=9)
    figure.suptitle(f"{model}, float16: time over rows of A", fontsize=11)
    save(figure, axes, folder / f"gemm-time-{model}.png")


def bandwidth(content: dict, folder: Path) -> None:
    """A group of bars for each weight, the largest last."""
    rows = of_part(content, "main")
    for m in BAR_ROWS:
        group = sorted((row for row in rows if row["m"] == m), key=lambda row: row["bytes"])
        if not group:
            continue
        figure, axis = plt.subplots(figsize=(0.36 * len(group) + 2, 4))
        for shift, title, names, colour in (
            (-0.2, "FdppFlatGemm", ("ours",), BLACK),
            (0.2, "best of cuBLAS and cuBLASLt", report.PEERS, BLUE),
        ):
            found = [(place, row, results.fastest(row, names)) for place, row in enumerate(group)]
            bars = [
                (place + shift, row["bytes"] / (row["us"][name] * 1e-6) / ceiling(content, row))
                for place, row, name in found
                if name
            ]
            if bars:
                axis.bar(*zip(*bars, strict=True), width=0.38, color=colour, label=title)
        axis.axhline(1, color=LIMIT_COLOUR, linestyle="--", linewidth=1, label="plain read kernel")
        axis.set_xticks(range(len(group)), [report.shape_text(row) for row in group], rotation=90, fontsize=7)
        axis.grid(True, axis="y", **GRID)
        axis.set_axisbelow(True)
        axis.set_ylabel("part of the read bandwidth", fontsize=9)
        axis.set_title(f"float16 weights, M = {m}", fontsize=10)
        save(figure, [axis], folder / f"gemm-bandwidth-m{m}.png")


def over_rows(
    axis: plt.Axes, rows: list[dict], value: Callable[[dict], float | None], title: str, colour: str, marker: str
) -> None:
    """Every case as a point, geometric means as a line."""
    found = [(row["m"], ratio) for row in rows if (ratio := value(row)) is not None]
    if not found:
        return
    axis.plot(*zip(*found, strict=True), marker, color=colour, markersize=3, alpha=0.35, markeredgewidth=0)
    by_rows = {m: [ratio for of, ratio in found if of == m] for m in sorted({m for m, _ in found})}
    means = [(m, results.geometric_mean(ratios)) for m, ratios in by_rows.items()]
    line(axis, means, title, colour, marker, 2)


def ratio_axes(rows: list[dict], across: int) -> tuple[plt.Figure, list[plt.Axes]]:
    figure, grid = plt.subplots(1, across, figsize=(5.2 * across, 4), squeeze=False)
    ms = sorted({row["m"] for row in rows})
    for axis in grid[0]:
        powers_of_two(axis, ms, map(str, ms))
        axis.axhline(1, color=LIMIT_COLOUR, linestyle="--", linewidth=1)
        axis.set_xlabel("M")
    return figure, list(grid[0])


def static_dataflows(content: dict, folder: Path) -> None:
    rows = of_part(content, "main")
    if not rows:
        return
    figure, (axis,) = ratio_axes(rows, 1)
    for kind, (colour, marker) in STATIC_LINES.items():
        value = partial(results.quotient, above=kind, below="ours")
        over_rows(axis, rows, value, f"only {report.STATIC[kind]} ({kind})", colour, marker)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("time / time of what dispatch chooses")
    axis.set_title("Static dataflows: above 1 the choice by M is faster", fontsize=10)
    save(figure, [axis], folder / "gemm-static.png")


def quantised(content: dict, folder: Path) -> None:
    rows = of_part(content, "quantised")
    if not rows:
        return
    figure, axes = ratio_axes(rows, 2)
    marks = {"int4_32": (BLUE, "s"), "int4_128": (BLACK, "o"), "int8": (GREEN, "^"), "fp8": (ORANGE, "D")}
    for name, (colour, marker) in marks.items():
        if name in report.INT4:
            over_rows(axes[0], rows, partial(results.quotient, above=f"ort_{name}", below=name), name, colour, marker)
        large = [row for row in rows if row["bytes"] >= report.LARGE_BYTES]
        over_rows(axes[1], large, partial(results.quotient, above="f16", below=name), name, colour, marker)
    axes[0].set_title("int4: time of ONNX Runtime's MatMulNBits / ours", fontsize=10)
    axes[1].set_title(
        f"time of our float16 / ours, weights of {report.LARGE_BYTES // 10**6} MB or more in float16", fontsize=10
    )
    for axis in axes:
        axis.set_ylim(bottom=0)
    save(figure, axes, folder / "gemm-int4.png")


def stages_and_padding(content: dict, folder: Path) -> None:
    rows = sorted(of_part(content, "t2"), key=lambda row: row["n"])
    if not rows:
        return
    panels = {"Stages of the flat kind, M = 8": T2_STAGES, "Rows of A padded to 8 and to 64": T2_PADDING}
    figure, grid = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4), squeeze=False)
    for axis, (title, lines) in zip(grid[0], panels.items(), strict=True):
        ns = [row["n"] for row in rows]
        powers_of_two(axis, ns, [f"{n // 1024}k" if n >= 1024 else str(n) for n in ns])
        for name, label, colour, marker in lines:
            rates = [row["us"].get(name) and row["bytes"] / row["us"][name] / 1e6 for row in rows]
            line(axis, list(zip(ns, rates, strict=True)), label, colour, marker, 1.6)
        axis.axhline(ceiling(content, rows[0]) / 1e12, color=LIMIT_COLOUR, linestyle="--", linewidth=1)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(f"N (K = {rows[0]['k']})")
        axis.set_ylabel("TB/s of the weight")
        axis.set_title(title, fontsize=10)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "gemm-t2.png", dpi=80)
    plt.close(figure)
    print(folder / "gemm-t2.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--table", type=Path, metavar="TABLE.json", help="of fdpp-tune, for the inflection points")
    options = parser.parse_args()
    content = results.read(options.results)
    table = results.read(options.table) if options.table else None
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for model in cases.MODELS:
        time_over_rows(content, model, table, options.output_dir)
    bandwidth(content, options.output_dir)
    static_dataflows(content, options.output_dir)
    quantised(content, options.output_dir)
    stages_and_padding(content, options.output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
