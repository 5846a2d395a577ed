"""A model beside its peers, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fdpp_ort.bench import machine
from fdpp_ort.bench.candidates import Models, list_candidates
from fdpp_ort.bench.cells import Cell
from fdpp_ort.bench.journal import Journal
from fdpp_ort.bench.limit import Limit, device_bandwidth, device_memory
from fdpp_ort.bench.online_softmax import with_online_softmax
from fdpp_ort.bench.process import gpu_memory_in_use
from fdpp_ort.bench.schedule import Schedule
from fdpp_ort.bench.summary import comparisons, summarise
from fdpp_ort.errors import FdppError
from fdpp_ort.files import write_json

PACKAGES = (
    "fdpp-ort",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "onnxruntime-genai-cuda",
    "torch",
    "transformers",
    "vllm",
    "numpy",
)


@dataclass(frozen=True)
class Request:
    """name: of the model, in the results. cells: in the order of importance. bandwidth: a GPU's name or GB/s; None: as
    the driver says. time_budget: seconds. checkout: the source tree whose commit the results name."""

    name: str
    models: Models
    cells: list[Cell]
    peers: tuple[str, ...]
    output: Path
    ablations: bool = False
    provider: str = "cpu"
    threads: int = 0
    new_tokens: int = 32
    rounds: int = 3
    bandwidth: str | None = None
    time_budget: float | None = None
    resume: bool = False
    checkout: Path | None = None


def bench_model(request: Request, show: Callable[[str], None]) -> dict:
    """Measures and writes request.output; what was measured before it ends early stays in the journal beside it.
    FdppError: bad input."""
    started = time.monotonic()
    graph = request.models.fdpp or request.models.original
    if graph is None:
        raise FdppError("neither an original nor an exported model was given")
    if not request.output.parent.is_dir():
        raise FdppError(f"{request.output.parent}: no folder for the results")
    bandwidth = device_bandwidth(request.provider, request.bandwidth)
    limit = Limit(graph, bandwidth, device_memory(request.provider), request.new_tokens)
    about = {
        "model": request.name,
        "provider": request.provider,
        "threads": request.threads,
        "new_tokens": request.new_tokens,
    }
    journal = Journal(request.output.with_suffix(".measured.jsonl"), about, request.resume)
    journal.begin_run(machine.describe(PACKAGES, request.checkout))
    on_gpu = request.provider == "cuda"
    with TemporaryDirectory(dir=graph.parent, prefix="fdpp-bench-") as scratch:
        models = request.models
        if request.ablations and models.fdpp is not None:
            online = with_online_softmax(models.fdpp, Path(scratch) / "online")
            models = Models(models.original, models.fdpp, models.checkpoint, online, models.dtype)
        listed = list_candidates(
            request.peers, request.ablations, models, request.provider, request.threads, request.new_tokens
        )
        present = [candidate for candidate in listed if not candidate.absent]
        if not present:
            why = "; ".join(f"{candidate.name}: {candidate.absent}" for candidate in listed) or "none was asked for"
            raise FdppError(f"no candidate can run: {why}")
        deadline = None if request.time_budget is None else started + request.time_budget
        used = gpu_memory_in_use if on_gpu else lambda: None
        schedule = Schedule(journal, request.cells, limit.misfit, used, show, deadline)
        schedule.run(present, request.rounds)
    rows = summarise(journal, request.cells, present, limit)
    content = {
        "unit": "milliseconds",
        **about,
        "runs": journal.runs,
        "rounds": request.rounds,
        "bandwidth": bandwidth,
        "candidates": [
            {"name": c.name, "absent": c.absent, **asdict(c.spec), "environment": c.environment} for c in listed
        ],
        "left_out": schedule.left_out(present, request.rounds),
        "comparisons": comparisons(rows, [candidate.name for candidate in present]),
        "rows": rows,
    }
    write_json(request.output, content, "the results")
    return content
