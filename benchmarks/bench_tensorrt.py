"""Decoding steps: TensorRT engines with our plugins and with attention spelled out in ONNX, our ONNX Runtime session.

    bench_tensorrt.py --output FILE --programs FOLDER --library libfdpp_trt.so [--layers 8] [--work FOLDER]
        [--reuse] [--batches 1,8] [--contexts 1024,8192] [--rounds 3] [--build-seconds N]
        [--standard-builder="--level=0 --cublas"]

FOLDER holds build_engine and step_time (cmake -S benchmarks/tensorrt). Llama2-7B's layers with random weights in
float16, one graph exported for each runtime. In each round every candidate runs in turn, in a process of its own,
through all cases; a figure is the median over replays of a CUDA graph, a ratio that of one round's figures.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import machine
from common import results
from common.decoders import SPELLINGS, write_graph
from common.options import numbers
from common.programs import run
from common.random_weights import write_weights
from common.shapes import Shape, layout
from onnx import TensorProto

REPLAYS = 50
ROOM = 64  # tokens that the caches hold beyond the longest context
PACKAGES = ("torch", "onnxruntime-gpu", "numpy")
PLUGINS, STANDARD, SESSION = "plugins", "standard", "session"
CANDIDATES = (PLUGINS, STANDARD, SESSION)
GOALS = {STANDARD: 1.5, SESSION: 0.95}


class Bench:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.shape = Shape(layers=options.layers)
        self.work: Path = options.work
        self.capacity = max(options.contexts) + ROOM
        self.work.mkdir(parents=True, exist_ok=True)
        self.builds: dict[str, str] = {}  # what was said of each engine

    # ---- graphs and engines

    def write_graphs(self) -> None:
        write_weights(self.work, layout(self.shape, TensorProto.FLOAT16))
        for spelling in SPELLINGS:
            write_graph(self.work / f"{spelling}.onnx", self.shape, spelling)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.export, (PLUGINS, SESSION)))

    def build_engines(self) -> None:
        """One after the other: TensorRT times kernels."""
        most = self.plugin_shapes(max(self.options.batches), self.capacity)
        self.build(self.graph(PLUGINS), PLUGINS, "/".join((self.plugin_shapes(1, 1), most, most)))
        for case in self.cases():
            self.build_standard(case)

    def build_standard(self, case: tuple[int, int]) -> None:
        """An engine a case, whose caches it fixes."""
        name, shapes, limit = _standard(case), self.standard_shapes(*case), self.options.build_seconds
        how = self.options.standard_builder.split()
        try:
            self.build(self.work / "standard.onnx", name, "/".join([shapes] * 3), how, limit)
        except subprocess.TimeoutExpired:
            self.builds[name] = f"not built within {limit} s"
            print(name, self.builds[name], flush=True)

    def export(self, candidate: str) -> None:
        import fdpp_ort
        from fdpp_ort.export import export_model

        engine = {"target": "tensorrt", "max_batch": max(self.options.batches), "max_length": self.capacity}
        more = engine if candidate == PLUGINS else {"library": fdpp_ort.library_path()}
        folder = self.graph(candidate).parent
        export_model(self.work / "genai.onnx", folder, verify=False, overwrite=True, **more)

    def graph(self, candidate: str) -> Path:
        return self.work / candidate / "model.onnx"

    def build(self, graph: Path, name: str, profile: str, how: Sequence[str] = (), limit: int | None = None) -> None:
        if self.options.reuse and self.engine(name).is_file():
            self.builds[name] = "built by an earlier run"
            return
        start = time.monotonic()
        program = self.options.programs / "build_engine"
        done = run(program, *how, graph, self.options.library, self.engine(name), profile, limit=limit)
        self.builds[name] = f"{done.stdout.strip()}, {time.monotonic() - start:.0f} s"
        print(self.builds[name], flush=True)

    def engine(self, name: str) -> Path:
        return self.work / f"{name}.engine"

    def cases(self) -> list[tuple[int, int]]:
        return [(batch, context) for batch in self.options.batches for context in self.options.contexts]

    def plugin_shapes(self, batch: int, context: int) -> str:
        return self._shapes(batch, context, self.capacity)

    def standard_shapes(self, batch: int, context: int) -> str:
        return self._shapes(batch, context, context - 1)

    def _shapes(self, batch: int, context: int, past: int) -> str:
        cache = f"{batch}x{self.shape.kv_heads}x{past}x{self.shape.head_size}"
        names = (f"past.{layer}.{part}" for layer in range(self.shape.layers) for part in ("key", "value"))
        shapes = {"input_ids": f"{batch}x1", "attention_mask": f"{batch}x{context}"} | dict.fromkeys(names, cache)
        return ",".join(f"{name}:{shape}" for name, shape in shapes.items())

    # ---- steps

    def steps(self, candidate: str) -> list[dict | None]:
        """Of each case the median in microseconds, and whether that is of a CUDA graph; None: no engine."""
        cases = self.cases()
        if candidate == SESSION:
            sizes = [f"{batch}x{context}" for batch, context in cases]
            done = run(sys.executable, __file__, "--session", self.graph(SESSION), self.capacity, *sizes)
            return [_figure(line) for line in done.stdout.splitlines()[-len(cases) :]]
        if candidate == PLUGINS:
            return self.replays(PLUGINS, [self.plugin_shapes(*case) for case in cases])
        built = [self.engine(_standard(case)).is_file() for case in cases]
        return [
            self.replays(_standard(case), [self.standard_shapes(*case)])[0] if there else None
            for case, there in zip(cases, built, strict=True)
        ]

    def replays(self, name: str, shapes: list[str]) -> list[dict]:
        program = self.options.programs / "step_time"
        given = [f"0/{one}" for one in shapes]
        done = run(program, self.engine(name), self.options.library, REPLAYS, *given)
        return [_figure(line) for line in done.stdout.splitlines()]

    def rows(self, rounds: list[dict]) -> list[dict]:
        """A row a case, of what steps() gave for each candidate in each round."""
        rows = []
        for index, (batch, context) in enumerate(self.cases()):
            found = [{name: of[name][index] for name in CANDIDATES if of[name][index]} for of in rounds]
            names = list(found[0])
            us = [{name: one[name]["us"] for name in names} for one in found]
            row = {
                "batch": batch,
                "context": context,
                "us": {name: statistics.median(one[name] for one in us) for name in names},
                "over_plugins": {name: statistics.median(one[name] / one[PLUGINS] for one in us) for name in names},
                "cuda_graph": {name: all(one[name]["graph"] for one in found) for name in names},
                "rounds": us,
            }
            rows.append(row)
        return rows


def report(rows: list[dict]) -> None:
    for row in rows:
        us, ratios = row["us"], row["over_plugins"]
        over = ", ".join(f"{name} {ratios[name]:.2f} (goal {GOALS[name]})" for name in us if name in GOALS)
        print(f"batch {row['batch']} context {row['context']}: plugins {us[PLUGINS]:.0f} us; over that: {over}")


def _standard(case: tuple[int, int]) -> str:
    return f"{STANDARD}-{case[0]}x{case[1]}"


def _figure(line: str) -> dict:
    how, *us = line.split()
    return {"us": statistics.median(map(float, us)), "graph": how == "captured"}


def session_steps(model: str, capacity: int, cases: list[tuple[int, int]]) -> None:
    """Prints for each case, as step_time does, the microseconds of each replay of one step in ONNX Runtime, captured as
    it runs on PyTorch's stream."""
    import torch
    from common.captured_step import CapturedStep, open_session

    stream = torch.cuda.Stream()
    session = open_session(model, stream)
    for batch, context in cases:
        times = CapturedStep(session, stream, batch, context, capacity).replay_times(REPLAYS)
        print("captured", *(f"{us:.2f}" for us in times), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--session"]:
        model, capacity, *cases = sys.argv[2:]
        session_steps(model, int(capacity), [tuple(map(int, case.split("x"))) for case in cases])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE")
    add("--programs", type=Path, required=True, metavar="FOLDER", help="of build_engine and step_time")
    add("--library", type=Path, required=True, help="libfdpp_trt.so, for the TensorRT that the programs run with")
    add("--work", type=Path, default=Path("tensorrt-bench"), metavar="FOLDER", help="for graphs, weights and engines")
    add(
        "--reuse",
        action="store_true",
        help="take graphs, weights and engines as an earlier run left them in --work",
    )
    add("--layers", type=int, default=8)
    add("--batches", type=numbers, default=[1, 8], metavar="B,...")
    add("--contexts", type=numbers, default=[1024, 8192], metavar="T,...")
    add("--rounds", type=int, default=3)
    add("--build-seconds", type=int, help="an engine of the standard spelling that takes longer is left out")
    add("--standard-builder", default="", metavar="OPTIONS", help="build_engine's, for the standard spelling")
    options = parser.parse_args()
    bench = Bench(options)
    if not options.reuse:
        bench.write_graphs()
    bench.build_engines()
    content = {
        "machine": machine.describe(PACKAGES),
        "shape": asdict(bench.shape),
        "capacity": bench.capacity,
        "goals": GOALS,
        "engines": bench.builds,
        "standard_builder": options.standard_builder,
    }
    rounds = []
    for _ in range(options.rounds):
        rounds.append({name: bench.steps(name) for name in CANDIDATES})
        rows = bench.rows(rounds)
        results.write(options.output, {**content, "rows": rows})
    report(rows)


if __name__ == "__main__":
    main()
