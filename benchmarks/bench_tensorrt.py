"""Decoding steps: TensorRT engines with our plugins and with attention spelled out in ONNX, our ONNX Runtime session.

    bench_tensorrt.py --output FILE --programs FOLDER --library libfdpp_trt.so [--layers 8] [--work FOLDER]
        [--batches 1,8] [--contexts 1024,8192] [--rounds 3]

FOLDER holds build_engine and step_time (cmake -S benchmarks/tensorrt). Llama2-7B's layers with random weights in
float16. All candidates of a case run one after the other, each in a process of its own, and in rounds; a figure is the
median over replays of a CUDA graph, a ratio that of one round's figures. The session runs the very graph that the
engine is built of.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import machine
import numpy as np
from common import results
from common.llama import SPELLINGS, Shape, write_graph, write_weights
from common.options import numbers
from common.programs import run

REPLAYS = 50
ROOM = 64  # tokens that the caches hold beyond the longest context
PACKAGES = ("torch", "onnxruntime-gpu", "numpy")
PLUGINS, STANDARD, SESSION = "plugins", "standard", "session"
GOALS = {STANDARD: 1.5, SESSION: 0.95}


class Bench:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.shape = Shape(layers=options.layers)
        self.work: Path = options.work
        self.capacity = max(options.contexts) + ROOM
        self.work.mkdir(parents=True, exist_ok=True)

    def program(self, name: str, *arguments: str) -> str:
        return run(self.options.programs / name, *arguments).stdout

    # ---- graphs and engines

    def prepare(self) -> None:
        from fdpp_ort.export import export_model

        write_weights(self.work, self.shape, np.dtype(np.float16))
        for spelling in SPELLINGS:
            write_graph(self.work / f"{spelling}.onnx", self.shape, spelling)
        library = str(self.options.library)
        exported = self.work / "exported"
        export_model(
            self.work / "genai.onnx",
            exported,
            target="tensorrt",
            max_batch=max(self.options.batches),
            max_length=self.capacity,
            verify=False,
            overwrite=True,
        )
        most = self.plugin_shapes(max(self.options.batches), self.capacity)
        profile = "/".join((self.plugin_shapes(1, 1), most, most))
        self.program("build_engine", str(exported / "model.onnx"), library, str(self.work / "plugins.engine"), profile)
        profiles = ["/".join([self.standard_shapes(*case)] * 3) for case in self.cases()]
        graph, engine = str(self.work / "standard.onnx"), str(self.work / "standard.engine")
        self.program("build_engine", graph, library, engine, *profiles)

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

    def step_us(self, candidate: str, index: int, batch: int, context: int) -> float:
        if candidate == SESSION:
            graph = self.work / "exported/model.onnx"
            done = run(sys.executable, __file__, "--session", graph, batch, context, self.capacity)
            return statistics.median(json.loads(done.stdout.splitlines()[-1]))
        profile, shapes = (0, self.plugin_shapes) if candidate == PLUGINS else (index, self.standard_shapes)
        engine = str(self.work / f"{candidate}.engine")
        arguments = [engine, str(self.options.library), str(profile), shapes(batch, context), str(REPLAYS)]
        return statistics.median(float(line) for line in self.program("step_time", *arguments).split())

    def measure(self) -> list[dict]:
        rows = []
        for index, (batch, context) in enumerate(self.cases()):
            rounds = [
                {name: self.step_us(name, index, batch, context) for name in (PLUGINS, STANDARD, SESSION)}
                for _ in range(self.options.rounds)
            ]
            ratios = {other: statistics.median(r[other] / r[PLUGINS] for r in rounds) for other in (STANDARD, SESSION)}
            us = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
            rows.append({"batch": batch, "context": context, "us": us, "over_plugins": ratios, "rounds": rounds})
            report = ", ".join(f"{name} {ratios[name]:.2f} (goal {goal})" for name, goal in GOALS.items())
            print(f"batch {batch} context {context}: plugins {us[PLUGINS]:.0f} us; over that: {report}", flush=True)
        return rows


def session_steps(model: str, batch: int, context: int, capacity: int) -> list[float]:
    """Microseconds of each replay of one step in ONNX Runtime, captured as it runs on PyTorch's stream."""
    import onnxruntime
    import torch
    from common import ort_session

    import fdpp_ort

    stream = torch.cuda.Stream()
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    provider = {"user_compute_stream": str(stream.cuda_stream)}
    session = onnxruntime.InferenceSession(model, options, providers=[("CUDAExecutionProvider", provider)])
    types = {"tensor(float16)": torch.float16, "tensor(int64)": torch.int64}
    sizes = {"batch": batch, "tokens": 1, "total": context, "capacity": capacity}

    def tensor(port) -> torch.Tensor:
        shape = [size if isinstance(size, int) else sizes[size] for size in port.shape]
        if port.name == "attention_mask":
            return torch.ones(shape, dtype=torch.int64, device="cuda")
        if types[port.type] == torch.int64:
            return torch.randint(0, 1000, shape, device="cuda")
        return torch.randn(shape, dtype=types[port.type], device="cuda")

    inputs = {port.name: tensor(port) for port in session.get_inputs()}
    outputs = {
        port.name: inputs[port.name.replace("present.", "past.")] if port.name.startswith("present.") else tensor(port)
        for port in session.get_outputs()
    }
    binding = ort_session.binding(session, inputs, outputs)
    run_options = ort_session.run_options()
    with torch.cuda.stream(stream):
        for _ in range(3):
            session.run_with_iobinding(binding, run_options)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            session.run_with_iobinding(binding, run_options)
        found = []
        for _ in range(REPLAYS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            found.append(1e3 * start.elapsed_time(end))
    return found


def main() -> None:
    if sys.argv[1:2] == ["--session"]:
        model, *sizes = sys.argv[2:]
        print(json.dumps(session_steps(model, *map(int, sizes))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE")
    add("--programs", type=Path, required=True, metavar="FOLDER", help="of build_engine and step_time")
    add("--library", type=Path, required=True, help="libfdpp_trt.so, for the TensorRT that the programs run with")
    add("--work", type=Path, default=Path("tensorrt-bench"), metavar="FOLDER", help="for graphs, weights and engines")
    add("--layers", type=int, default=8)
    add("--batches", type=numbers, default=[1, 8], metavar="B,...")
    add("--contexts", type=numbers, default=[1024, 8192], metavar="T,...")
    add("--rounds", type=int, default=3)
    options = parser.parse_args()
    bench = Bench(options)
    bench.prepare()
    content = {
        "machine": machine.describe(PACKAGES),
        "shape": asdict(bench.shape),
        "capacity": bench.capacity,
        "goals": GOALS,
        "rows": bench.measure(),
    }
    results.write(options.output, content)


if __name__ == "__main__":
    main()
