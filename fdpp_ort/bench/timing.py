"""Timing of calls that return once their work is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

WARM_UP = 4  # ONNX Runtime captures a CUDA graph in the third run
WARM_SECONDS = 0.2  # a GPU that was idle takes as long until its clocks are up


def warm_up(run: Callable[[], object]) -> None:
    """Calls `run` until what comes takes what it always will."""
    start = time.perf_counter()
    calls = 0
    while calls < WARM_UP or time.perf_counter() - start < WARM_SECONDS:
        run()
        calls += 1


def timed(run: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` calls."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def intervals(items: Iterator[object]) -> list[float]:
    """Seconds an item takes, over each two that follow each other: where one is under way while another is read, both
    may be there at once. What the first one takes does not count."""
    ends = []
    for _ in items:
        ends.append(time.perf_counter())
    return [(end - start) / 2 for start, end in zip(ends, ends[2:], strict=False)]
