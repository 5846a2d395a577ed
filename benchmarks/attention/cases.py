"""What is measured: the cases of every section, their sizes, and the order in which they run."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace

from common.cold import sets_for

HEADS = ((32, 32), (32, 8), (32, 2), (64, 8), (40, 40), (9, 3), (16, 2))
HEAD_SIZES = (64, 128, 256)
BATCHES = (1, 4, 8, 32, 64)
CONTEXTS = (128, 1024, 4096, 8192, 32768, 131072)
SECTIONS = ("decode", "rotary", "cache8", "queries", "prefill", "capacity")

PAGE = 64  # tokens of a page, where a peer's cache has pages
LARGE_BUFFER = 131072  # tokens a row
CHECKED_HEADS = 8  # (row, head) pairs of a result that are held against float64


@dataclass(frozen=True)
class Case:
    """One problem. The new tokens are the last `queries` of `context`; the cache holds `capacity` tokens a row, and the
    call names `bound` as total_sequence_length."""

    section: str
    q_heads: int
    kv_heads: int
    head_size: int
    batch: int
    context: int
    queries: int = 1
    capacity: int = 0  # 0: the context
    bound: int = 0  # 0: the context

    @property
    def room(self) -> int:
        return self.capacity or self.context

    @property
    def group(self) -> int:
        return self.q_heads // self.kv_heads

    @property
    def key(self) -> str:
        text = f"{self.section} {self.q_heads}/{self.kv_heads} d{self.head_size} B{self.batch} N{self.context}"
        if self.queries != 1:
            text += f" S{self.queries}"
        return text

    def kv_bytes(self, element_bytes: int = 2) -> int:
        """What one call must read of K and V."""
        return 2 * self.batch * self.kv_heads * self.context * self.head_size * element_bytes

    def sets(self, element_bytes: int = 2) -> int:
        wanted = sets_for(self.kv_bytes(element_bytes), self.flops() / 5e14)
        return min(wanted, self.room // self.context) if self.capacity else wanted

    def cache_elements(self) -> int:
        """Of the K (or V) cache of one call."""
        return self.batch * self.kv_heads * self.room * self.head_size

    def set_distance(self) -> int:
        """Elements from one set's cache to the next one's. Where the tokens fill only a part of the buffer, the buffers
        of the sets overlap, and what is read of them does not."""
        return self.context * self.head_size if self.capacity else self.cache_elements()

    def pool_elements(self, element_bytes: int = 2) -> int:
        """For the K (or V) caches of all sets."""
        return self.cache_elements() + (self.sets(element_bytes) - 1) * self.set_distance()

    def pool_bytes(self, element_bytes: int = 2) -> int:
        return 2 * self.pool_elements(element_bytes) * element_bytes

    def flops(self) -> int:
        """Of the two products, the causal half alone where the queries are a prompt."""
        keys = (self.context + 1) / 2 if self.queries == self.context else self.context
        return int(4 * self.batch * self.q_heads * self.queries * keys * self.head_size)

    def as_dict(self) -> dict[str, int | str]:
        return asdict(self)


def decode_grid() -> list[Case]:
    return [
        Case("decode", *heads, head_size, batch, context)
        for heads in HEADS
        for head_size in HEAD_SIZES
        for batch in BATCHES
        for context in CONTEXTS
    ]


def representative() -> list[Case]:
    """Some 40 decode cases that stand for the grid; ONNX Runtime's node runs in these too."""
    chosen = [((32, 8), 128, (1, 8, 64), (128, 1024, 8192, 32768))]
    chosen += [((32, 32), 128, (1, 8), (1024, 8192, 32768)), ((64, 8), 128, (1, 32), (1024, 8192))]
    chosen += [((64, 8), 128, (1,), (131072,)), ((32, 2), 128, (1, 8), (1024, 32768))]
    chosen += [((9, 3), 64, (1, 8), (128, 1024, 8192)), ((16, 2), 256, (1, 8), (1024, 32768))]
    chosen += [((40, 40), 128, (1, 32), (1024, 4096)), ((32, 8), 64, (1, 8), (4096,))]
    return [
        Case("decode", *heads, head_size, batch, context)
        for heads, head_size, batches, contexts in chosen
        for batch in batches
        for context in contexts
    ]


def rotary_cases(quick: bool) -> list[Case]:
    """Against ONNX Runtime's node, rotary embedding and append included."""
    cases = [Case("rotary", 32, 8, 128, 1, 1024)]
    if not quick:
        cases += [Case("rotary", 32, 8, 128, *shape) for shape in ((1, 8192), (1, 32768), (8, 1024), (32, 1024))]
        cases += [Case("rotary", 32, 32, 128, *shape) for shape in ((1, 1024), (8, 1024), (1, 8192))]
        cases += [Case("rotary", 64, 8, 128, 1, 1024), Case("rotary", 9, 3, 64, 1, 1024)]
    return cases


def cache8_cases(quick: bool) -> list[Case]:
    shapes = (
        ((1, 32768), (32, 1024)) if quick else ((1, 32768), (1, 131072), (8, 4096), (8, 32768), (32, 1024), (64, 4096))
    )
    heads = ((32, 8, 128),) if quick else ((32, 8, 128), (32, 32, 128), (64, 8, 128), (32, 8, 64), (32, 8, 256))
    return [Case("cache8", *head, *shape) for head in heads for shape in shapes]


def queries_cases(quick: bool) -> list[Case]:
    shapes = ((8, 8192),) if quick else ((1, 1024), (1, 8192), (8, 1024), (8, 8192), (32, 4096))
    heads = ((32, 8, 128),) if quick else ((32, 32, 128), (32, 8, 128), (64, 8, 128), (9, 3, 64))
    lengths = (4,) if quick else (1, 4, 8, 16)
    return [Case("queries", *head, *shape, queries=s) for head in heads for shape in shapes for s in lengths]


def prefill_cases(quick: bool) -> list[Case]:
    lengths = (4096,) if quick else (4096, 16384)
    heads = ((32, 8),) if quick else ((32, 8), (32, 32))
    return [Case("prefill", *head, 128, 1, length, queries=length) for head in heads for length in lengths]


def capacity_cases(quick: bool) -> list[Case]:
    heads = ((32, 8, 128),) if quick else ((32, 8, 128), (32, 32, 128), (9, 3, 64))
    return [Case("capacity", *head, batch, 1024) for head in heads for batch in ((1,) if quick else (1, 8))]


def in_large_buffer(case: Case, loose: bool) -> Case:
    """The case in a cache with room for 131072 tokens a row; loose: with no tighter bound than the buffer's end."""
    return replace(case, capacity=LARGE_BUFFER, bound=LARGE_BUFFER if loose else 0)


def selected(sections: list[str], quick: bool) -> list[Case]:
    """The cases of `sections` in the order in which they run. Decode cases are shuffled (always the same way), the
    representative ones first, so that a run that stops early has seen all of the grid evenly."""
    cases: list[Case] = []
    if "decode" in sections:
        first = representative()
        rest = [] if quick else [case for case in decode_grid() if case not in set(first)]
        random.Random(0).shuffle(rest)
        cases += first + rest
    others = {
        "rotary": rotary_cases,
        "cache8": cache8_cases,
        "queries": queries_cases,
        "prefill": prefill_cases,
        "capacity": capacity_cases,
    }
    for section, make in others.items():
        if section in sections:
            # Short and asked for by name: before the long grid.
            cases = make(quick) + cases
    return cases


def part(cases: list[Case], index: int, count: int) -> list[Case]:
    """Every count-th case from the index-th on (from 1), so that the parts take about the same time."""
    return cases[index - 1 :: count]


def estimated_seconds(case: Case, candidates: int, replays: int) -> float:
    """GPU time of the timed replays (and as many again half for checks and warm-up), from the operations and bytes."""
    per_call = max(case.kv_bytes() / 4.2e12, case.flops() / 4e14, 5e-6)
    return per_call * case.sets() * candidates * (replays + 3) * 1.2
