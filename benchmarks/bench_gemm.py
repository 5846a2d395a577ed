"""FdppFlatGemm's GPU variants and cuBLAS over M: where one gives way to the next.

    bench_gemm.py --output FILE

Each figure is the median of replays of a CUDA graph over distinct weights of 256 MB in all, more than four times an
H200's L2, so that they come from memory as in a model. Inputs are random, and every result is first held against
float64. plugins/dispatch/cost_model.cpp is fitted to what comes from here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import machine
import torch

from fdpp_ort import _core

SHAPES = {  # N, K
    "Llama2-7B QKV": (12288, 4096),
    "Llama2-7B O": (4096, 4096),
    "Llama2-7B gate": (11008, 4096),
    "Llama2-7B down": (4096, 11008),
    "Llama2-7B head": (32000, 4096),
    "Qwen2.5-0.5B down": (896, 4864),
    "SmolLM2 QKV": (960, 576),
    "SmolLM2 O": (576, 576),
    "SmolLM2 gate": (1536, 576),
    "SmolLM2 down": (576, 1536),
    "SmolLM2 head": (49152, 576),
}
ROWS = (1, 2, 3, 4, 8, 16, 24, 32, 48, 64)
COLD_BYTES = 256 << 20
REPLAYS = 7
PACKAGES = ("torch",)


def attributes(n: int, k: int) -> dict:
    return {"N": n, "K": k, "weight_format": "f16"}


def variant_runner(variant: str, n: int, k: int, a: torch.Tensor, y: torch.Tensor, device: dict) -> Callable | None:
    """run(weight) for one variant; None where it does not take the problem."""
    inputs = {"A": a, "B": torch.empty(n, k, dtype=torch.float16, device="cuda")}
    supported, _ = _core.supports("FdppFlatGemm", attributes(n, k), inputs, variant, device)
    if not supported:
        return None
    plan = _core.plan_gemm(attributes(n, k), inputs, device, variant=variant)
    workspace = torch.empty(max(plan["workspace_bytes"], 1), dtype=torch.uint8, device="cuda")

    def run(weight: torch.Tensor) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        _core.gemm(
            attributes(n, k), {"A": a, "B": weight}, {"Y": y}, workspace=workspace, stream=stream, variant=variant
        )

    return run


def check(run: Callable, a: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, what: str) -> None:
    y.fill_(float("nan"))
    run(weight)
    expected = a.double() @ weight.double().T
    error = ((y.double() - expected).norm() / expected.norm()).item()
    if not error < 1e-3:
        raise SystemExit(f"bench_gemm: error: {what}: relative error {error:.2e}, expected less than 1e-3")


def microseconds(run: Callable, weights: list[torch.Tensor]) -> float:
    """Median time of one call over cold weights."""
    graph = torch.cuda.CUDAGraph()
    run(weights[0])
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for weight in weights:
            run(weight)
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(weights))
    return statistics.median(times)


def measure(n: int, k: int, rows: int, weights: list[torch.Tensor], device: dict) -> dict[str, float]:
    """Microseconds by variant, and of cuBLAS through torch."""
    a = torch.randn(rows, k, dtype=torch.float16, device="cuda")
    y = torch.empty(rows, n, dtype=torch.float16, device="cuda")
    runners = {"cublas": lambda weight: torch.matmul(a, weight.T, out=y)}
    for v in _core.variants():
        if (v["op"], v["backend"]) == ("FdppFlatGemm", "cuda"):
            runners[v["name"]] = variant_runner(v["name"], n, k, a, y, device)
    figures = {}
    for name, run in runners.items():
        if run is not None:
            check(run, a, weights[-1], y, f"{name}, M={rows} N={n} K={k}")
            figures[name] = microseconds(run, weights)
    figures["chosen"] = _core.plan_gemm(attributes(n, k), {"A": a, "B": weights[0]}, device)["variant"]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", required=True, help="write the results there, as JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = _core.gpu_device(0)
    results = []
    for title, (n, k) in SHAPES.items():
        count = max(2, -(-COLD_BYTES // (2 * n * k)))
        weights = list(torch.randn(count, n, k, dtype=torch.float16, device="cuda"))
        for rows in ROWS:
            figures = measure(n, k, rows, weights, device)
            results.append({"weight": title, "N": n, "K": k, "M": rows, **figures})
            text = "  ".join(f"{name} {us:.2f}" for name, us in figures.items() if name != "chosen")
            print(f"{title:18} M={rows:<3} {text}  chosen {figures['chosen']}", flush=True)
    content = {**machine.describe(PACKAGES), "device": device, "unit": "microseconds", "results": results}
    Path(options.output).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
