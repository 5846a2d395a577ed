"""Many decoding steps in one process: rows of changing number and length. Memory and time must stay what they are.

    soak.py FOLDER [--steps 20000] [--provider cuda --cuda-graph] [--capacity 1024] [--batches 1,2,4] [--output FILE]

FOLDER is a model folder. Each sequence has a random prompt of random length and so many new tokens, drawn anew; a
decoder serves all of its batch. After a tenth of the steps the checks begin: memory grows by less than 1 % (or
16 MB), and steps of like length and batch take at most 5 % longer in the last third than in the first (median of all
pairs).

Exit status 1: one of them fails. An error of the model ends the run.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path

import machine
import numpy as np
from common.options import numbers

from fdpp_ort.bench.process import gpu_memory_in_use
from fdpp_ort.generation import Decoder, load_model

PACKAGES = ("fdpp-ort", "onnxruntime", "onnxruntime-gpu", "numpy")
MOST_GROWTH, LEAST_GROWTH_BYTES, MOST_SLOWER = 0.01, 16e6, 0.05
LENGTH_STEP = 64  # lengths this close together are alike


def memory_bytes(provider: str) -> int:
    """Of this process now; on a GPU of all processes there."""
    if provider == "cuda":
        return gpu_memory_in_use()
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024


class Soak:
    """samples: (steps done, bytes). times: (batch, length in LENGTH_STEP) -> (steps done, seconds)."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.model = load_model(options.folder, options.provider, options.cuda_graph)
        self.decoders = {batch: Decoder(self.model, batch, options.capacity) for batch in options.batches}
        self.random = np.random.default_rng(options.seed)
        self.samples: list[tuple[int, int]] = []
        self.times: dict[tuple[int, int], list[tuple[int, float]]] = {}
        self.longest = options.capacity // 2
        self.done = 0

    def run(self) -> None:
        start = time.monotonic()
        # The largest prompts first: what they take, the runtime's arena keeps.
        for batch, decoder in self.decoders.items():
            decoder.prefill(np.zeros((batch, self.longest), np.int64))
        while self.done < self.options.steps:
            self.sequence()
            self.samples.append((self.done, memory_bytes(self.options.provider)))
            if len(self.samples) % 20 == 0:
                spent, memory = time.monotonic() - start, self.samples[-1][1]
                print(f"{self.done} steps, {spent:.0f} s, {memory / 1e6:.1f} MB", file=sys.stderr, flush=True)

    def sequence(self) -> None:
        batch = int(self.random.choice(self.options.batches))
        decoder = self.decoders[batch]
        prompt = int(self.random.integers(1, self.longest + 1))
        new = int(self.random.integers(1, self.options.capacity - prompt + 1))
        decoder.prefill(self.random.integers(0, self.model.vocabulary, (batch, prompt)))
        for _ in range(min(new, self.options.steps - self.done)):
            tokens = self.random.integers(0, self.model.vocabulary, (batch, 1))
            begun = time.perf_counter()
            logits = decoder.step(tokens)
            key = batch, decoder.length // LENGTH_STEP
            self.times.setdefault(key, []).append((self.done, time.perf_counter() - begun))
            if not np.isfinite(logits).all():
                raise SystemExit(f"soak: error: logits of step {self.done} are not finite")
            self.done += 1

    def growth(self) -> tuple[float, int]:
        """Of memory after the first tenth, as a share and in bytes: the last value over the first."""
        settled = [memory for done, memory in self.samples if done >= self.options.steps / 10]
        return settled[-1] / settled[0] - 1, settled[-1] - settled[0]

    def slower(self) -> float | None:
        """How much longer like steps take in the last third; None where no like ones were there."""
        third = self.options.steps / 3
        found = []
        for times in self.times.values():
            first = [seconds for done, seconds in times if self.options.steps / 10 <= done < third]
            last = [seconds for done, seconds in times if done >= 2 * third]
            if len(first) >= 5 and len(last) >= 5:
                found.append(statistics.median(last) / statistics.median(first) - 1)
        return statistics.median(found) if found else None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path)
    add("--steps", type=int, default=20000)
    add("--provider", choices=("cpu", "cuda"), default="cpu")
    add("--cuda-graph", action="store_true")
    add("--capacity", type=int, default=1024, metavar="TOKENS")
    add("--batches", type=numbers, default=[1, 2, 4], metavar="B,...")
    add("--seed", type=int, default=0)
    add("--output", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.steps < 100 or options.capacity < 4:
        parser.error("expected at least 100 --steps and a --capacity of 4")
    return options


def main() -> int:
    options = parse_arguments()
    soak = Soak(options)
    soak.run()
    (share, grown), slower = soak.growth(), soak.slower()
    passed = {
        "memory": share <= MOST_GROWTH or grown <= LEAST_GROWTH_BYTES,
        "time": slower is not None and slower <= MOST_SLOWER,
    }
    content = {
        **machine.describe(PACKAGES),
        "model": str(options.folder),
        "steps": soak.done,
        "sequences": len(soak.samples),
        "memory_growth": share,
        "memory_growth_bytes": grown,
        "slower": slower,
        "passed": passed,
        "memory_samples": soak.samples[:: max(1, len(soak.samples) // 100)],
    }
    late = "no like steps to compare" if slower is None else f"steps take {slower:+.1%}"
    print(f"{soak.done} steps in {len(soak.samples)} sequences: memory {share:+.2%} ({grown / 1e6:+.1f} MB), {late}")
    if options.output is not None:
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
