"""Timing on a GPU: CUDA graphs of calls over distinct operands, replayed in turns; what memory and launches allow."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable

import torch
import triton
import triton.language as tl

FLUSH_BYTES = 256 << 20  # more than four times an H200's L2
# GPU clock ticks before the clock starts, so that all of a replay is queued by then: 0.1 ms, and for each call 1.5 us
# in a graph, 0.2 ms in a queue.
HEAD_START, HEAD_START_GRAPH, HEAD_START_QUEUE = 200_000, 3_000, 400_000
EMPTY_NODES = 512


@triton.jit
def _read(source, sink, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    total = tl.sum(tl.load(source + start + tl.arange(0, BLOCK)), 0)
    # Next to never true, but the compiler cannot know, so the loads stay.
    if total == 0x5BD1E995:
        tl.store(sink, total)


@triton.jit
def _nothing(sink):
    pass


class Queue:
    """Calls that cannot be captured, launched one by one while the GPU is kept waiting: in place of their graph."""

    # Launches that a stream takes before it makes the host wait are about a thousand, a few of them a call.
    MOST_CALLS = 128

    def __init__(self, run: Callable[[int], object], count: int):
        self.run, self.count = run, min(count, self.MOST_CALLS)

    def replay(self) -> None:
        for index in range(self.count):
            self.run(index)


Replayable = torch.cuda.CUDAGraph | Queue


class Timer:
    """Captures calls on a stream of its own and replays them there."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self._flush = torch.randint(-(2**31), 2**31 - 1, (FLUSH_BYTES // 4,), dtype=torch.int32, device="cuda")
        self._sink = torch.zeros(1, dtype=torch.int32, device="cuda")
        # torch's allocator may go on asking a graph whose capture failed.
        self._broken: list[torch.cuda.CUDAGraph] = []

    def capture(self, run: Callable[[int], object], count: int) -> torch.cuda.CUDAGraph:
        """The graph of run(0) .. run(count - 1)."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            # relaxed: some peers ask the driver for things during their calls that the stricter modes forbid.
            graph.capture_begin(capture_error_mode="relaxed")
            try:
                for index in range(count):
                    run(index)
            except BaseException:
                self._broken.append(graph)
                # The stream must leave its capture; that this one is broken is no news.
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph

    def _replay(self, graph: Replayable, count: int) -> float:
        """Microseconds of one of `count` calls in a replay with nothing of it in the L2."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            self.read(self._flush)
            each = HEAD_START_QUEUE if isinstance(graph, Queue) else HEAD_START_GRAPH
            torch.cuda._sleep(HEAD_START + each * count)
            start.record()
            graph.replay()
            end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / count

    def read(self, data: torch.Tensor, block: int = 16384, warps: int = 8) -> None:
        """Reads all of an int32 tensor whose size `block` divides."""
        _read[(data.numel() // block,)](data, self._sink, BLOCK=block, num_warps=warps)

    def measure(self, graphs: dict[str, tuple[Replayable, int]], replays: int) -> dict[str, list[float]]:
        """Microseconds of one call by name: `graphs` holds each graph with its number of calls. Every round replays all
        graphs, each time starting with another one, after a round that is not counted."""
        names = list(graphs)
        times: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(-1, replays):
            shift = turn % max(1, len(names))
            for name in names[shift:] + names[:shift]:
                elapsed = self._replay(*graphs[name])
                if turn >= 0:
                    times[name].append(elapsed)
        return times

    def read_ceiling(self, data: torch.Tensor, replays: int = 7) -> float:
        """Bytes a second at which a plain kernel reads `data`, in the best of some launch shapes."""
        data = data.view(torch.int32)
        data = data[: data.numel() // 65536 * 65536]
        best = 0.0
        for block, warps in ((4096, 4), (8192, 4), (8192, 8), (16384, 8), (32768, 16)):
            graph = self._read_graph(data, block, warps)
            times = self.measure({"read": (graph, 1)}, replays)["read"]
            best = max(best, data.numel() * 4 / statistics.median(times) * 1e6)
        return best

    def _read_graph(self, data: torch.Tensor, block: int, warps: int) -> torch.cuda.CUDAGraph:
        self.read(data, block, warps)
        return self.capture(lambda _: self.read(data, block, warps), 1)

    def empty_node(self, replays: int = 7) -> float:
        """Microseconds of a kernel node that does nothing."""
        _nothing[(1,)](self._sink)
        graph = self.capture(lambda _: _nothing[(1,)](self._sink), EMPTY_NODES)
        return statistics.median(self.measure({"nothing": (graph, EMPTY_NODES)}, replays)["nothing"])
