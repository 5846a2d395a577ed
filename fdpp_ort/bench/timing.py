"""Timing of calls that return once their work is done."""

from __future__ import annotations

import time
from collections.abc import Callable

WARM_UP = 4  # ONNX Runtime captures a CUDA graph in the third run
WARM_SECONDS = 0.2  # a GPU that was idle takes as long until its clocks are up


def warm_up(run: Callable[[], object], prepare: Callable[[], object]) -> None:
    """Calls `run`, each time after `prepare`, until what comes takes what it always will."""
    start = time.perf_counter()
    calls = 0
    while calls < WARM_UP or time.perf_counter() - start < WARM_SECONDS:
        timed(run, 1, prepare)
        calls += 1


def timed(run: Callable[[], object], count: int, prepare: Callable[[], object] | None = None) -> list[float]:
    """Seconds of each of `count` calls; `prepare` is called ahead of each and is not timed."""
    seconds = []
    for _ in range(count):
        if prepare is not None:
            prepare()
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds
