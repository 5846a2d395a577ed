"""Plots of bench_attention.py's results: time, and the part of the read bandwidth, over context.

    plot_attention.py RESULTS.json --output-dir FOLDER [--batches 1,8,64]

One figure for each quantity and batch, a panel for each head count and head size; and one of the softmax modes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from attention import report
from common import results
from common.figures import BLACK, BLUE, GREEN, LIMIT_COLOUR, ORANGE, PINK, RED, powers_of_two, save

LINES = {  # title: (candidates of which the fastest counts, colour, marker)
    "FdppAttention": (None, BLACK, "o"),
    "cuDNN": (("cudnn", "cudnn_packed"), BLUE, "s"),
    "FlashInfer": (("flashinfer", "flashinfer_tc"), GREEN, "^"),
    "XQA": (("xqa",), ORANGE, "D"),
    "FlashAttention-2": (("fa2",), PINK, "v"),
    "ONNX Runtime": (("ort",), RED, "*"),
}
POINTS = ("ONNX Runtime",)  # measured here and there: no lines between


def fastest(row: dict, names: tuple[str, ...]) -> float | None:
    return min((row["us"][name] for name in names if row["us"].get(name)), default=None)


def panel_of(row: dict) -> tuple[tuple[int, int], int]:
    case = row["case"]
    return (case["q_heads"], case["kv_heads"]), case["head_size"]


def context_label(context: float) -> str:
    return f"{int(context) // 1024}k" if context >= 1024 else str(int(context))


def panels(rows: list[dict], title: str, unit: str) -> tuple[plt.Figure, dict]:
    """A grid of axes by (heads, head size) of `rows`."""
    across = sorted({panel_of(row)[1] for row in rows})
    down = list(dict.fromkeys(panel_of(row)[0] for row in sorted(rows, key=lambda row: panel_of(row)[0], reverse=True)))
    figure, axes = plt.subplots(
        len(down), len(across), figsize=(3.6 * len(across) + 0.6, 2.3 * len(down) + 1.2), sharex=True, squeeze=False
    )
    contexts = sorted({report.context_of(row) for row in rows})
    grid = {}
    for line, heads in zip(axes, down, strict=True):
        for axis, size in zip(line, across, strict=True):
            powers_of_two(axis, contexts, map(context_label, contexts))
            axis.set_title(f"{heads[0]}/{heads[1]} heads of {size}", fontsize=9)
            axis.tick_params(labelsize=8)
            grid[heads, size] = axis
        line[0].set_ylabel(unit, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("tokens of context", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure, grid


def draw(axis: plt.Axes, rows: list[dict], mode: str, value) -> None:
    """One line a candidate; value(row, us) is what is drawn."""
    rows = sorted(rows, key=report.context_of)
    for title, (names, colour, marker) in LINES.items():
        found = [(row, fastest(row, names or (mode,))) for row in rows]
        points = [(report.context_of(row), value(row, us)) for row, us in found if us]
        if points:
            ours = names is None
            axis.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                markersize=7 if title in POINTS else 4,
                linewidth=2 if ours else 1.1,
                linestyle="none" if title in POINTS else "-",
                zorder=3 if ours else 2,
                label=title,
            )


def time_and_fraction(content: dict, batch: int, folder: Path) -> None:
    rows = [row for row in content["rows"] if row["section"] == "decode" and row["case"]["batch"] == batch]
    if not rows:
        return

    def ceiling(row: dict) -> float:
        return content["runs"][row["run"]]["read_ceiling"]

    groups = results.by(rows, panel_of)
    what = f"Decode attention, float16, batch {batch}"
    figure, grid = panels(rows, f"{what}: time", "µs")
    for key, group in groups.items():
        axis = grid[key]
        axis.set_yscale("log")
        group = sorted(group, key=report.context_of)
        limit = [(report.context_of(row), row["bytes"] / ceiling(row) * 1e6) for row in group]
        axis.plot(*zip(*limit, strict=True), color=LIMIT_COLOUR, linestyle="--", linewidth=1, label="reading K and V")
        nodes = [content["runs"][row["run"]]["empty_node_us"] for row in group]
        axis.axhline(min(nodes), color=LIMIT_COLOUR, linestyle=":", linewidth=1, label="empty graph node")
        axis.set_ylim(bottom=1)
        draw(axis, group, content["mode"], lambda row, us: us)
    save(figure, grid.values(), folder / f"attention-time-b{batch}.png")

    figure, grid = panels(rows, f"{what}: part of the read bandwidth", "part of the limit")
    for key, group in groups.items():
        axis = grid[key]
        axis.set_ylim(0, 1.05)
        axis.axhline(1, color=LIMIT_COLOUR, linestyle="--", linewidth=1, label="plain read kernel")
        draw(axis, group, content["mode"], lambda row, us: row["bytes"] / (us * 1e-6) / ceiling(row))
    save(figure, grid.values(), folder / f"attention-bandwidth-b{batch}.png")


def modes(content: dict, folder: Path) -> None:
    """Every decode case as a point, the geometric mean of a context as a line."""
    rows = [row for row in content["rows"] if row["section"] == "decode"]
    figure, axis = plt.subplots(figsize=(7, 4.2))
    contexts = sorted({report.context_of(row) for row in rows})
    for shift, (name, colour, marker) in ((0.93, ("unified", BLUE, "s")), (1.07, ("online", RED, "^"))):
        groups = {context: [] for context in contexts}
        for row in rows:
            groups[report.context_of(row)] += results.quotients([row], "lazy", name)
        points = [(context * shift, value) for context, values in groups.items() for value in values]
        if not points:
            continue
        axis.plot(*zip(*points, strict=True), marker, color=colour, markersize=3, alpha=0.35, markeredgewidth=0)
        means = [(context, results.geometric_mean(values)) for context, values in groups.items() if values]
        axis.plot(*zip(*means, strict=True), color=colour, marker=marker, linewidth=2, label=f"lazy / {name}")
        print(f"lazy / {name}: median {statistics.median(value for _, value in points):.3f}")
    axis.axhline(1, color=LIMIT_COLOUR, linestyle="--", linewidth=1)
    powers_of_two(axis, contexts, map(context_label, contexts))
    axis.set_xlabel("tokens of context")
    axis.set_ylabel("time of lazy / time of the other mode")
    axis.set_title("Softmax modes: above 1 the other mode is faster than lazy", fontsize=10)
    save(figure, [axis], folder / "attention-modes.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--batches", default="1,8,64", help="default: 1,8,64")
    options = parser.parse_args()
    content = results.read(options.results)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for batch in options.batches.split(","):
        time_and_fraction(content, int(batch), options.output_dir)
    if any(row["section"] == "decode" for row in content["rows"]):
        modes(content, options.output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
