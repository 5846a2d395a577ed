"""How many distinct operands a graph of calls takes in turn, so that each call finds its own in memory alone."""

from __future__ import annotations

import math

COLD_BYTES = 256 << 20  # of all operands of a graph: more than four times an H200's L2
GRAPH_SECONDS = 400e-6  # at least, so that the start of a replay, some microseconds, weighs less than a hundredth
# Calls in one graph at most. Where so many sets still hold less than COLD_BYTES, they are cold all the same, since the
# L2 is filled with something else before each replay; more nodes would only cost time to capture.
MOST_SETS = 256
READ_RATE = 4.5e12  # bytes a second, about
FASTEST_CALL = 3e-6


def sets_for(size_bytes: int, compute_seconds: float = 0) -> int:
    """Operand sets for calls that each read `size_bytes` and compute for about `compute_seconds`."""
    call = max(size_bytes / READ_RATE, FASTEST_CALL, compute_seconds)
    return min(MOST_SETS, math.ceil(max(COLD_BYTES / size_bytes, GRAPH_SECONDS / call)))
