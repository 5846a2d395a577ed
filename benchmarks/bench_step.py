"""Where the time of a decoding step in ONNX Runtime goes: the kernels of one replay of a CUDA graph, by variants of
the export.

    bench_step.py --output FILE [--layers 8] [--batches 1,8] [--contexts 1024] [--variants default,...]
        [--work FOLDER]

Llama2-7B's layers with random weights in float16, as onnxruntime-genai's builder spells them. Each variant runs in a
process of its own. Of each case FILE has the median over replays, the kernels of one replay, and how long each part of
a layer takes; FILE with .png has a picture of a layer in the middle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import machine
from common import results, timeline
from common.decoders import write_graph
from common.options import comma_separated, numbers
from common.random_weights import write_weights
from common.shapes import Shape, layout
from onnx import TensorProto

import fdpp_ort

REPLAYS, RECORDED = 50, 3
ROOM = 64  # tokens that the caches hold beyond the longest context
PACKAGES = ("torch", "onnxruntime-gpu", "numpy")
# Options of export_model().
VARIANTS = {
    "default": {},
    "norms apart": {"norms_into_products": False},
    "prefetch": {"prefetch": True},
}


def measure(model: str, layers: int, capacity: int, cases: list[tuple[int, int]]) -> None:
    """Prints a row of JSON for each case; in a process of its own."""
    import torch
    from common.captured_step import CapturedStep, open_session

    stream = torch.cuda.Stream()
    session = open_session(model, stream)
    for batch, context in cases:
        step = CapturedStep(session, stream, batch, context, capacity)
        us = statistics.median(step.replay_times(REPLAYS))
        recorded = timeline.record(step.replay, RECORDED)
        parts = [timeline.parts(kernels, layers) for kernels in recorded]
        row = {
            "batch": batch,
            "context": context,
            "us": round(us, 2),
            "parts": {name: round(statistics.median(one[name] for one in parts), 2) for name in parts[0]},
            "kernels": timeline.as_json(recorded[-1]),
        }
        print(json.dumps(row), flush=True)


def run_variant(name: str, options: argparse.Namespace, work: Path) -> list[dict]:
    from fdpp_ort.export import export_model

    folder = work / name.replace(" ", "-")
    export_model(work / "genai.onnx", folder, verify=False, library=fdpp_ort.library_path(), **VARIANTS[name])
    cases = [f"{batch}x{context}" for batch in options.batches for context in options.contexts]
    capacity = max(options.contexts) + ROOM
    command = [sys.executable, __file__, "--one", folder / "model.onnx", options.layers, capacity, *cases]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr.strip()[-2000:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [{"variant": name, **row} for row in rows]


def draw(rows: list[dict], layers: int, file: Path) -> None:
    """Of each row the kernels of a layer in the middle, one bar a kernel: what overlaps lies one below the other."""
    from common.figures import BLUE, GREEN, GRID, ORANGE, plt

    figure, axes = plt.subplots(len(rows), 1, figsize=(11, 1.9 * len(rows)), squeeze=False, sharex=True)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        kernels = [timeline.Kernel(**kernel) for kernel in row["kernels"]]
        main = [kernel for kernel in kernels if timeline.is_part(kernel)]
        first = len(timeline.PARTS) * (layers // 2)
        begin, end = main[first - 1].end, main[first + len(timeline.PARTS) - 1].end
        shown = [kernel for kernel in kernels if begin < kernel.end <= end]
        for place, kernel in enumerate(shown):
            part = timeline.is_part(kernel)
            colour = GREEN if "decode" in kernel.name else BLUE if part else ORANGE
            axis.barh(place, kernel.us, left=kernel.start - begin, color=colour)
        case = f"{row['variant']}, batch {row['batch']}, {row['context']} tokens"
        axis.set_title(f"{case}: {row['us']:.0f} us", fontsize=9)
        axis.invert_yaxis()
        axis.set_yticks([])
        axis.grid(True, **GRID)
    axes[-1, 0].set_xlabel("microseconds after the layer before; green attention, blue products, orange others")
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    print(file)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        model, layers, capacity, *cases = sys.argv[2:]
        measure(model, int(layers), int(capacity), [tuple(map(int, case.split("x"))) for case in cases])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE")
    add("--layers", type=int, default=8)
    add("--batches", type=numbers, default=[1, 8], metavar="B,...")
    add("--contexts", type=numbers, default=[1024], metavar="T,...")
    add("--variants", type=comma_separated(VARIANTS), default=list(VARIANTS), metavar="NAME,...")
    add("--work", type=Path, default=Path("/dev/shm"), metavar="FOLDER", help="for weights")
    options = parser.parse_args()
    shape = Shape(layers=options.layers)
    content = {"machine": machine.describe(PACKAGES), "shape": asdict(shape), "rows": []}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        write_weights(work, layout(shape, TensorProto.FLOAT16))
        write_graph(work / "genai.onnx", shape, "genai")
        for name in options.variants:
            content["rows"] += run_variant(name, options, work)
            results.write(options.output, content)
    for row in content["rows"]:
        print(row["variant"], row["batch"], row["context"], row["us"], row["parts"])
    draw(content["rows"], options.layers, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
