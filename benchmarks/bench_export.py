"""How fast fdpp-export streams the weights of a large model, beside a plain copy of its files, and how much memory it
takes.

Makes a float16 graph of random numbers with the layers of Llama2-7B in a new folder, which is removed afterwards, and
then in turns copies it and exports it, each in a process of its own: seconds from start to end with all data on the
disk (sync), none of it in the page cache beforehand, and the peak of the resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machine
import numpy as np
import onnx
from onnx import TensorProto, helper

HIDDEN, INNER, VOCABULARY, HEADS, POSITIONS = 4096, 11008, 32000, 32, 4096
HEAD_SIZE = HIDDEN // HEADS
BLOCK = 32 << 20  # values that are written again and again

CHILD = """
import re, sys, time
from fdpp_ort import library_path
from fdpp_ort.export import export_model
start = time.perf_counter()
export_model(sys.argv[1], sys.argv[2], weights=sys.argv[3], verify=False, library=library_path())
print(time.perf_counter() - start, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


class Model:
    """A graph whose weights lie in one file beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes, self.tensors, self.inputs, self.outputs = [], [], [], []
        self.data = (folder / "model.onnx.data").open("wb")
        values = np.random.default_rng(0).standard_normal(BLOCK, np.float32) / np.float32(64)
        self.block = values.astype(np.float16).tobytes()

    def weight(self, name: str, *shape: int) -> str:
        size, offset = 2 * int(np.prod(shape)), self.data.tell()
        for start in range(0, size, len(self.block)):
            self.data.write(self.block[: size - start])
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "model.onnx.data"), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name

    def node(self, op: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, list(outputs), name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def product(self, x: str, name: str, rows: int, columns: int) -> str:
        return self.node("MatMul", [x, self.weight(f"{name}.weight", rows, columns)], name)

    def norm(self, x: str, name: str) -> str:
        return self.node("SimplifiedLayerNormalization", [x, self.weight(f"{name}.weight", HIDDEN)], name, axis=-1)

    def layer(self, index: int, x: str, shared: list[str]) -> str:
        name = f"layers.{index}"
        normed = self.norm(x, f"{name}.norm")
        qkv = [self.product(normed, f"{name}.{part}", HIDDEN, HIDDEN) for part in "qkv"]
        past, present = [f"past.{index}.{part}" for part in "kv"], [f"present.{index}.{part}" for part in "kv"]
        for values, names in ((self.inputs, past), (self.outputs, present)):
            shape = ["batch", HEADS, "length", HEAD_SIZE]
            values += [helper.make_tensor_value_info(cache, TensorProto.FLOAT16, shape) for cache in names]
        attributes = {"num_heads": HEADS, "kv_num_heads": HEADS, "do_rotary": 1}
        attention = "GroupQueryAttention", [*qkv, *past, *shared], f"{name}.attention", *present
        self.node(*attention, domain="com.microsoft", **attributes)
        x = self.node("Add", [x, self.product(f"{name}.attention", f"{name}.o", HIDDEN, HIDDEN)], f"{name}.middle")
        normed = self.norm(x, f"{name}.mlp.norm")
        gate, up = (self.product(normed, f"{name}.{part}", HIDDEN, INNER) for part in ("gate", "up"))
        silu = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
        gated = self.node("Mul", [silu, up], f"{name}.gated")
        return self.node("Add", [x, self.product(gated, f"{name}.down", INNER, HIDDEN)], f"{name}.end")

    def save(self, layers: int) -> int:
        """Writes the model of so many layers; returns the bytes of its weights."""
        self.inputs.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]))
        for name, shape in (("seqlens_k", ["batch"]), ("total", [1])):
            self.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT32, shape))
        shared = ["seqlens_k", "total", *(self.weight(name, POSITIONS, HEAD_SIZE // 2) for name in ("cos", "sin"))]
        x = self.node("Gather", [self.weight("embedding", VOCABULARY, HIDDEN), "input_ids"], "embedded")
        for index in range(layers):
            x = self.layer(index, x, shared)
        self.product(self.norm(x, "norm"), "logits", HIDDEN, VOCABULARY)
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT16, ["batch", "tokens", VOCABULARY])
        graph = helper.make_graph(self.nodes, "llama", self.inputs, [logits, *self.outputs], self.tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), self.folder / "model.onnx")
        size = self.data.tell()
        self.data.close()
        return size


def forget(folder: Path) -> None:
    """All of the files in `folder` to the disk and out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flush(folder: Path) -> float:
    """Seconds until the files in `folder` are on the disk."""
    start = time.perf_counter()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


@contextmanager
def processor() -> Iterator[dict[str, float]]:
    """Seconds of processor time that the processes of the block take, once it has ended."""
    before, used = resource.getrusage(resource.RUSAGE_CHILDREN), {}
    yield used
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def copied(source: Path, target: Path) -> dict[str, float]:
    start = time.perf_counter()
    with processor() as used:
        subprocess.run(["cp", "-r", source, target], check=True)
    return {"seconds": time.perf_counter() - start + flush(target), **used}


def exported(source: Path, target: Path, weights: str) -> dict[str, float]:
    command = [sys.executable, "-c", CHILD, source, target, weights]
    with processor() as used:
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {"seconds": float(words[0]) + flush(target), "peak_rss_bytes": 1024 * int(words[1]), **used}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12, help="of 405 MB each")
    parser.add_argument("--folder", type=Path, help="where to make the files (default: the system's temporary folder)")
    parser.add_argument("--weights", nargs="+", default=["keep", "int4"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    results = {"copy": [], **{weights: [] for weights in options.weights}}
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        source, target = Path(work) / "in", Path(work) / "out"
        source.mkdir()
        size = Model(source).save(options.layers)
        for _ in range(options.rounds):
            for name, runs in results.items():
                forget(source)
                runs.append(copied(source, target) if name == "copy" else exported(source, target, name))
                print(name, runs[-1], flush=True)
                shutil.rmtree(target)
    best = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()}
    report = machine.describe(("onnx", "onnx-ir", "onnxruntime", "numpy")) | {
        "weight_bytes": size,
        "layers": options.layers,
        "runs": results,
        "median_seconds": best,
        "speed_beside_copy": {name: best["copy"] / seconds for name, seconds in best.items()},
    }
    print(json.dumps(report["speed_beside_copy"]))
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
