"""Models of the real shapes with random weights, end to end beside their peers: fdpp-bench for each, in one command.

    bench_model.py --output-dir FOLDER --time-budget 580 [--models Llama2-7B,OPT-6.7B] [--weights f16,int4-32,int4-128]
        [--resume] [--ablations] [--peers ...] [--batch ...] [--context ...] [--layers N]

Each model is made (original and export), measured and removed again; what is left of the time is shared equally by
those to come. FOLDER/MODEL-WEIGHTS.json has the results, .png the plot. With --resume, models that are complete are
not made again, and of the others only what is missing is measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.decoders import TYPES, write_folder
from common.options import comma_separated, numbers
from common.shapes import SHAPES, Shape, layout, named_shape
from machine import ROOT

import fdpp_ort
from fdpp_ort.bench.candidates import KINDS, PEERS, Models
from fdpp_ort.bench.cells import list_cells
from fdpp_ort.bench.model_bench import Request, bench_model
from fdpp_ort.errors import FdppError
from fdpp_ort.export import ExportError, export_model

PAPER = ["Llama2-7B", "Llama2-13B", "OPT-6.7B", "ChatGLM2-6B", "Llama3-8B"]
BLOCK_SIZES = {"f16": 0, "f32": 0, "int4-32": 32, "int4-128": 128}
# The order is that of importance.
BATCHES, CONTEXTS, PROMPTS = [1, 8, 2, 4, 32, 64], [1024, 4096, 128, 8192, 32768], [1024, 4096]
TORCH_PEERS = {"hf", "compile", "vllm"}  # they have no weights of 4 bits


def read_rate() -> None:
    """Prints the GB/s at which a plain kernel reads; needs PyTorch and Triton."""
    import torch
    from timing import Timer

    print(Timer().read_ceiling(torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")) / 1e9)


def measured_bandwidth() -> str | None:
    """In a process of its own, which leaves nothing on the GPU; None where it fails."""
    done = subprocess.run([sys.executable, __file__, "--read-rate"], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"read rate not measured: {done.stderr.strip()[-300:]}", flush=True)
        return None
    return done.stdout.split()[-1]


def is_complete(results: Path, rounds: int) -> bool:
    if not results.is_file():
        return False
    content = json.loads(results.read_text(encoding="utf-8"))
    return not content["left_out"] and content["rounds"] >= rounds


def make(shape: Shape, weights: str, folder: Path, provider: str) -> tuple[Path, Path]:
    """The original and the exported folder. OSError: no room for them."""
    original, exported = folder / "original", folder / "fdpp"
    activations = "f16" if provider == "cuda" else "f32"
    needed = 2 * sum(tensor.size_bytes for tensor in layout(shape, TYPES[activations], BLOCK_SIZES[weights]))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{folder.parent} has {free / 1e9:.1f} GB free, two models of it take {needed / 1e9:.1f}: --work")
    write_folder(original, shape, activations, BLOCK_SIZES[weights], cuda=provider == "cuda")
    export_model(original, exported, library=fdpp_ort.library_path(), verify=False)
    return original, exported


def bench(options: argparse.Namespace, name: str, weights: str, seconds: float | None, bandwidth: str | None) -> str:
    """What is to be said of it."""
    start = time.monotonic()
    shape = named_shape(name, options.layers)
    peers = tuple(peer for peer in options.peers if weights in ("f16", "f32") or peer not in TORCH_PEERS)
    contexts = [context for context in options.context if context + options.new_tokens <= shape.positions]
    prompts = [tokens for tokens in options.prefill if tokens <= shape.positions]
    if not contexts:
        return f"{name} {weights}: none of the contexts fits {shape.positions} positions"
    with tempfile.TemporaryDirectory(dir=options.work, prefix="fdpp-models-") as folder:
        original, exported = make(shape, weights, Path(folder), options.provider)
        made = time.monotonic() - start
        checkpoint = original if weights in ("f16", "f32") else None
        request = Request(
            name=f"{name} {weights}" + ("" if options.layers is None else f", {options.layers} layers"),
            models=Models(original, exported, checkpoint, dtype="float16" if options.provider == "cuda" else "float32"),
            cells=list_cells(options.batch, contexts, prompts),
            peers=peers,
            output=options.output_dir / f"{name}-{weights}.json",
            ablations=options.ablations,
            provider=options.provider,
            new_tokens=options.new_tokens,
            rounds=options.rounds,
            bandwidth=bandwidth,
            time_budget=None if seconds is None else max(seconds - made, 1),
            resume=options.resume,
            checkout=ROOT,
        )
        content = bench_model(request, lambda what: print(what, flush=True))
    return f"{name} {weights}: made in {made:.0f} s, all in {time.monotonic() - start:.0f} s" + show(content, request)


def show(content: dict, request: Request) -> str:
    from rich.console import Console

    from fdpp_ort.bench.plot import plot
    from fdpp_ort.bench.show import print_results

    print_results(Console(highlight=False), content)
    try:
        plot(request.output.with_suffix(".png"), content)
    except ImportError as error:
        return f"; no plot: {error}"
    return ""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output-dir", type=Path, required=True, metavar="FOLDER")
    add("--models", type=comma_separated(SHAPES), default=PAPER, metavar="NAME,...")
    add(
        "--weights",
        type=comma_separated(BLOCK_SIZES),
        default=["f16"],
        metavar="W,...",
        help=f"of {', '.join(BLOCK_SIZES)}",
    )
    add("--layers", type=int, help="in place of all")
    add("--peers", type=comma_separated(KINDS), default=list(PEERS), metavar="NAME,...")
    add("--batch", type=numbers, default=BATCHES, metavar="B,...", help="the most important first")
    add("--context", type=numbers, default=CONTEXTS, metavar="T,...")
    add("--prefill", type=numbers, default=PROMPTS, metavar="T,...")
    add("--new-tokens", type=int, default=32)
    add("--rounds", type=int, default=2)
    add("--ablations", action="store_true")
    add("--provider", choices=("cpu", "cuda"), default="cuda")
    add("--bandwidth", metavar="NAME|GB/s", help="default: measured")
    add("--time-budget", type=float, metavar="SECONDS")
    add("--resume", action="store_true")
    add("--work", type=Path, default=Path("/dev/shm"), metavar="FOLDER", help="for weights, twice a model's")
    options = parser.parse_args()
    wrong = "f32" if options.provider == "cuda" else "f16"
    if wrong in options.weights:
        parser.error(f"--weights {wrong} does not run with --provider {options.provider}")
    return options


def main() -> int:
    if sys.argv[1:] == ["--read-rate"]:
        read_rate()
        return 0
    options = parse_arguments()
    start = time.monotonic()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    wanted = [
        (name, weights)
        for weights in options.weights
        for name in options.models
        if not (options.resume and is_complete(options.output_dir / f"{name}-{weights}.json", options.rounds))
    ]
    bandwidth = options.bandwidth
    if bandwidth is None and options.provider == "cuda":
        bandwidth = measured_bandwidth()
    failed = False
    for position, (name, weights) in enumerate(wanted):
        seconds = None
        if options.time_budget is not None:
            seconds = (options.time_budget - (time.monotonic() - start)) / (len(wanted) - position)
        try:
            print(bench(options, name, weights, seconds, bandwidth), flush=True)
        except (FdppError, ExportError, OSError) as error:
            failed = True
            print(f"{name} {weights}: FAILED: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
