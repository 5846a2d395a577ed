"""The kernels of a replayed CUDA graph one after the other, and what of a decoder's layer takes how long."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

# Of a layer whose queries, keys and values and whose gate and up are one product each.
PARTS = ("qkv", "attention", "output", "gate|up", "down")
_ATTENTION = ("decode_kernel", "short_decode", "prefill", "attention")
_PRODUCTS = ("gemv", "flat_", "gemm", "nvjet", "cutlass", "cublas")


@dataclass(frozen=True)
class Kernel:
    """start: microseconds after the first kernel's. blocks, threads, shared_bytes: of its launch."""

    name: str
    start: float
    us: float
    blocks: int
    threads: int
    shared_bytes: int

    @property
    def end(self) -> float:
        return self.start + self.us


def record(replay: Callable[[], None], count: int) -> list[list[Kernel]]:
    """The kernels and copies of each of `count` replays, as CUPTI sees them by way of PyTorch's profiler."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(count):
            replay()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    events = sorted(
        (e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")), key=lambda e: e["ts"]
    )
    if len(events) % count:
        raise RuntimeError(f"the profiler saw {len(events)} kernels in {count} equal replays")
    each = len(events) // count
    return [_kernels(events[each * i : each * (i + 1)]) for i in range(count)]


def _kernels(events: list[dict]) -> list[Kernel]:
    first, kernels = events[0]["ts"], []
    for event in events:
        launch = event["args"]
        x, y, z = launch.get("grid", (1, 1, 1))
        threads = launch.get("block", (1, 1, 1))
        kernels.append(
            Kernel(
                event["name"].replace("(anonymous namespace)::", "")[:90],
                round(event["ts"] - first, 2),
                round(event["dur"], 2),
                x * y * z,
                threads[0] * threads[1] * threads[2],
                launch.get("shared memory", 0),
            )
        )
    return kernels


def is_part(kernel: Kernel) -> bool:
    """Whether it is an attention or a product."""
    return any(word in kernel.name for word in (*_ATTENTION, *_PRODUCTS))


def parts(kernels: list[Kernel], layers: int) -> dict[str, float]:
    """Microseconds from the end of one product or attention to the end of the next, on average over all layers but the
    first: what lies between them belongs to the one that waits for it. `head`: the product that makes the logits."""
    main = [kernel for kernel in kernels if is_part(kernel)]
    if len(main) != len(PARTS) * layers + 1:
        raise RuntimeError(f"{len(main)} products and attentions, expected {len(PARTS)} in each of {layers} layers")
    steps = [after.end - before.end for before, after in zip(main, main[1:], strict=False)]
    inner = steps[len(PARTS) - 1 : -1]
    found = {part: round(statistics.fmean(inner[i :: len(PARTS)]), 2) for i, part in enumerate(PARTS)}
    return {**found, "head": round(steps[-1], 2)}


def as_json(kernels: list[Kernel]) -> list[dict]:
    return [asdict(kernel) for kernel in kernels]
