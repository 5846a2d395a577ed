"""FdppFlatGemm on the CPU against ONNX Runtime's own products, inside ONNX Runtime sessions.

    bench_gemm_cpu.py --output FILE

A session holds one weight shape many times over, each time with random numbers of its own, so many that a pass over
them does not fit the last-level cache: weights come from memory, as in a model. Candidates of one shape take turns,
pass by pass, so that slow drifts of the machine meet all alike. Times are medians and the least of all passes; ratios
are medians of the passes' ratios, each to the peer's pass of the same turn, and the ratio of the least times. Every
candidate's first product is held against float64.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import machine
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import fdpp_ort
from fdpp_ort.export.pack import int4_words

SHAPES = {  # N, K
    "SmolLM2-135M QKV": (960, 576),
    "SmolLM2-135M O": (576, 576),
    "SmolLM2-135M gate": (1536, 576),
    "SmolLM2-135M down": (576, 1536),
    "SmolLM2-135M head": (49152, 576),
    "Qwen2.5-0.5B QKV": (1152, 896),
    "Qwen2.5-0.5B O": (896, 896),
    "Qwen2.5-0.5B gate": (4864, 896),
    "Qwen2.5-0.5B down": (896, 4864),
    "Qwen2.5-0.5B head": (151936, 896),
}
ROWS = (1, 8)
BLOCK = 32
PACKAGES = ("onnxruntime", "numpy")
# Peers, then ours; a ratio is a peer's time over ours.
RATIOS = {"int4 accuracy 4": ("MatMulNBits accuracy 4", 1.15), "f16": ("MatMul f32", 1.7)}


def last_cache_bytes() -> int:
    """The largest cache that the first processor sees."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes), default=64 << 20)


class Weights:
    """Random weights of one shape."""

    def __init__(self, n: int, k: int, rng: np.random.Generator):
        self.n, self.k, self.blocks = n, k, -(-k // BLOCK)
        self.rng = rng

    def int4(self) -> tuple[np.ndarray, np.ndarray]:
        """MatMulNBits' B [N, blocks, bytes] and scales."""
        numbers = self.rng.integers(0, 256, (self.n, self.blocks, BLOCK // 2), np.uint8)
        scales = self.rng.uniform(0.5, 1.5, (self.n, self.blocks)).astype(np.float32) / 8
        return numbers, scales

    def floats(self) -> np.ndarray:
        """[N, K] in float32."""
        return self.rng.standard_normal((self.n, self.k), np.float32)


def int4_values(numbers: np.ndarray, scales: np.ndarray, k: int) -> np.ndarray:
    """What MatMulNBits' B stands for, [N, K] in float64."""
    values = np.stack((numbers & 15, numbers >> 4), -1).astype(np.float64).reshape(*scales.shape, BLOCK) - 8
    return (values * scales[..., None]).reshape(len(scales), -1)[:, :k]


def int4_node(ours: bool, accuracy_level: int, weights: Weights, index: int) -> tuple:
    """A node, its initializers, and the matrix [N, K] that it multiplies by (of the first node alone)."""
    numbers, scales = weights.int4()
    exact = int4_values(numbers, scales, weights.k) if index == 0 else None
    settings = {"N": weights.n, "K": weights.k, "block_size": BLOCK, "accuracy_level": accuracy_level}
    if ours:
        numbers = int4_words(numbers.reshape(weights.n, -1))
        op, domain, settings = "FdppFlatGemm", "fdpp", settings | {"weight_format": "int4"}
    else:
        op, domain, settings = "MatMulNBits", "com.microsoft", settings | {"bits": 4}
    names = ["a", f"b{index}", f"scales{index}"]
    node = helper.make_node(op, names, [f"y{index}"], name=f"n{index}", domain=domain, **settings)
    return node, {names[1]: numbers, names[2]: scales}, exact


def float_node(ours: bool, dtype: type, weights: Weights, index: int) -> tuple:
    """As int4_node."""
    values = weights.floats().astype(dtype)
    exact = values.astype(np.float64) if index == 0 else None
    if ours:
        settings = {"N": weights.n, "K": weights.k, "weight_format": "f16" if dtype == np.float16 else "f32"}
        node = helper.make_node("FdppFlatGemm", ["a", f"b{index}"], [f"y{index}"], domain="fdpp", **settings)
    else:
        node = helper.make_node("MatMul", ["a", f"b{index}"], [f"y{index}"])
        values = np.ascontiguousarray(values.T)
    return node, {f"b{index}": values}, exact


# name -> (bytes of a weight, the node's maker and its first arguments)
CANDIDATES = {
    "MatMulNBits accuracy 4": (0.5 + 4 / BLOCK, int4_node, (False, 4)),
    "int4 accuracy 4": (0.5 + 4 / BLOCK, int4_node, (True, 4)),
    "MatMulNBits": (0.5 + 4 / BLOCK, int4_node, (False, 0)),
    "int4": (0.5 + 4 / BLOCK, int4_node, (True, 0)),
    "MatMul f32": (4, float_node, (False, np.float32)),
    "f32": (4, float_node, (True, np.float32)),
    "f16": (2, float_node, (True, np.float16)),
}


class Candidate:
    """A session over as many weights of one shape as exceed `cold_bytes`."""

    def __init__(self, name: str, n: int, k: int, cold_bytes: int, threads: int):
        size, make, arguments = CANDIDATES[name]
        self.name, self.n, self.k = name, n, k
        self.count = int(cold_bytes / (n * k * size)) + 1
        weights = Weights(n, k, np.random.default_rng(n * k))
        nodes, initializers = [], []
        for index in range(self.count):
            node, arrays, exact = make(*arguments, weights, index)
            nodes.append(node)
            initializers += [numpy_helper.from_array(array, key) for key, array in arrays.items()]
            self.exact = exact if index == 0 else self.exact
        self.session = self._session(nodes, initializers, threads)

    def _session(self, nodes: list, initializers: list, threads: int) -> ort.InferenceSession:
        outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["m", self.n]) for i in range(self.count)]
        inputs = [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["m", self.k])]
        graph = helper.make_graph(nodes, "products", inputs, outputs, initializers)
        opsets = [
            helper.make_opsetid(domain, version) for domain, version in (("", 17), ("com.microsoft", 1), ("fdpp", 1))
        ]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        fdpp_ort.register(options)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def bind(self, a: np.ndarray) -> None:
        """Takes A and memory for the results of each product."""
        self.a = a
        self.outputs = [np.empty((len(a), self.n), np.float32) for _ in range(self.count)]
        self.binding = self.session.io_binding()
        self.binding.bind_cpu_input("a", a)
        for index, y in enumerate(self.outputs):
            self.binding.bind_output(f"y{index}", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def microseconds(self) -> float:
        """One product's time in one pass."""
        start = time.perf_counter()
        self.session.run_with_iobinding(self.binding)
        return (time.perf_counter() - start) * 1e6 / self.count

    def check(self) -> None:
        """Holds the first product against float64."""
        expected = self.a.astype(np.float64) @ self.exact.T
        error = np.linalg.norm(self.outputs[0] - expected) / np.linalg.norm(expected)
        limit = 2e-2 if "accuracy 4" in self.name else 1e-5
        if not error < limit:
            raise SystemExit(f"bench_gemm_cpu: error: {self.name}: relative error {error:.2e}, expected below {limit}")


def measure(n: int, k: int, names: list[str], options: argparse.Namespace) -> list[dict]:
    """Rows of results for one shape."""
    candidates = [Candidate(name, n, k, options.cold_bytes, options.threads) for name in names]
    rows = []
    for m in ROWS:
        a = np.random.default_rng(m).standard_normal((m, k), np.float32)
        for candidate in candidates:
            candidate.bind(a)
            candidate.microseconds()
            candidate.check()
        times = {name: [] for name in names}
        for turn in range(options.passes):
            shift = turn % len(candidates)
            for candidate in candidates[shift:] + candidates[:shift]:
                times[candidate.name].append(candidate.microseconds())
        row = {"M": m, "N": n, "K": k}
        row["median"] = {name: statistics.median(t) for name, t in times.items()}
        row["least"] = {name: min(t) for name, t in times.items()}
        row["ratios"] = {
            f"{ours} over {peer}": {
                "median": statistics.median(p / o for p, o in zip(times[peer], times[ours], strict=True)),
                "least": row["least"][peer] / row["least"][ours],
            }
            for ours, (peer, _) in RATIOS.items()
            if ours in times and peer in times
        }
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", help="write the results there, as JSON")
    parser.add_argument("--passes", type=int, default=15, help="counted passes over each candidate's weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", default="", help="those whose name holds this alone")
    parser.add_argument("--candidates", nargs="*", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--cold-bytes", type=int, default=last_cache_bytes() * 9 // 8)
    options = parser.parse_args()
    results = []
    for title, (n, k) in SHAPES.items():
        if options.shapes not in title:
            continue
        for row in measure(n, k, options.candidates, options):
            results.append({"weight": title, **row})
            times = "  ".join(f"{name} {us:.1f}" for name, us in row["median"].items())
            ratios = "  ".join(f"{name} {r['median']:.2f} ({r['least']:.2f})" for name, r in row["ratios"].items())
            print(f"{title:18} M={row['M']:<2} {times} | {ratios}", flush=True)
    summary = {}
    for ours, (peer, goal) in RATIOS.items():
        for m in ROWS:
            found = [r["ratios"].get(f"{ours} over {peer}") for r in results if r["M"] == m]
            if all(found) and found:
                means = {kind: statistics.geometric_mean(f[kind] for f in found) for kind in ("median", "least")}
                summary[f"{ours} over {peer}, M={m}"] = means | {"goal": goal}
                print(f"{ours} over {peer}, M={m}: {means['median']:.2f} (least {means['least']:.2f}), goal {goal}")
    if options.output:
        content = machine.describe(PACKAGES)
        content |= {"cold_bytes": options.cold_bytes, "threads": options.threads, "passes": options.passes}
        content |= {"load_average": os.getloadavg(), "unit": "microseconds", "summary": summary, "results": results}
        Path(options.output).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
