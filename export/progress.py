"""How long steps tell the caller where they are."""

from __future__ import annotations

from collections.abc import Callable

# Called with what is being done, how much of it is done and how much there is (bytes of weights, steps of a run).
Progress = Callable[[str, int, int], None]
