"""A candidate's own process: loads it, then measures the cells that it is told, one by one.

    python -m fdpp_ort.bench.worker          Spec as a line of JSON on standard input, then a line a cell

Answers are lines of JSON on standard output, the first once the candidate is loaded: {"seconds": ...} or
{"error": ...}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module

from fdpp_ort.bench.cells import DECODE, Cell
from fdpp_ort.bench.spec import Spec
from fdpp_ort.generation.memory import peak_memory_bytes

RUNNERS = {
    "session": ("session_runner", "SessionRunner"),
    "genai": ("genai_runner", "GenaiRunner"),
    "hf": ("torch_runners", "EagerRunner"),
    "compile": ("torch_runners", "CompiledRunner"),
    "vllm": ("vllm_runner", "VllmRunner"),
}
PREFILL_REPEATS = 5


def measure(runner, cell: Cell) -> list[float]:
    if cell.phase == DECODE:
        return runner.decode(cell.batch, cell.tokens)
    return runner.prefill(cell.batch, cell.tokens, PREFILL_REPEATS)


def main() -> None:
    # What libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(run) -> bool:
        start = time.perf_counter()
        try:
            answers.write(json.dumps({"seconds": run(), "took": time.perf_counter() - start, **memory()}) + "\n")
        except Exception as error:  # of any of the libraries
            answers.write(json.dumps({"error": reason(error), "took": time.perf_counter() - start}) + "\n")
            return False
        return True

    spec = Spec(**json.loads(sys.stdin.readline()))
    module, name = RUNNERS[spec.worker]
    runner = None

    def load() -> None:
        nonlocal runner
        runner = getattr(import_module(f"fdpp_ort.bench.{module}"), name)(spec)

    if not answer(load):
        return
    for line in sys.stdin:
        cell = Cell(**json.loads(line))
        answer(lambda cell=cell: measure(runner, cell))


def memory() -> dict[str, int]:
    return {"peak_memory_bytes": peak_memory_bytes()}


def reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


if __name__ == "__main__":
    main()
