"""Tensors of a case: views of one pool of random numbers, and the float64 results that candidates are held against.

All sets of operands of all cases, in all layouts, are views of the same memory: what a candidate takes for its cache is
random either way, and no layout needs a copy. Each result is therefore held against a reference over the view that the
candidate itself read, computed at once, since the next candidate appends its tokens to the same memory.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from common.pool import Pool

from attention.cases import CHECKED_HEADS, PAGE, Case

CHECKED_ROWS = 64  # query rows of one head, where a prompt has more


class Operands:
    """The sets of one case: caches of their own; query and new tokens, which a model has just computed, for all."""

    def __init__(self, case: Case, pool: Pool):
        if case.pool_bytes(pool.dtype.itemsize) > pool.size_bytes:
            raise MemoryError(f"caches of {case.pool_bytes(pool.dtype.itemsize) / 1e9:.1f} GB do not fit")
        self.case, self.pool = case, pool
        self.sets = case.sets(pool.dtype.itemsize)
        device = pool.data.device
        b, s, d = case.batch, case.queries, case.head_size
        self.query = torch.randn(b, s, case.q_heads, d, device=device).half()
        self.key = torch.randn(b, s, case.kv_heads, d, device=device).half()
        self.value = torch.randn(b, s, case.kv_heads, d, device=device).half()
        shape = (b, case.kv_heads, case.room, d)
        values_from = case.pool_elements(pool.dtype.itemsize)

        def cache(first: int) -> torch.Tensor:
            return pool.data[first : first + case.cache_elements()].view(shape)

        starts = [index * case.set_distance() for index in range(self.sets)]
        self.caches = [(cache(start), cache(values_from + start)) for start in starts]

    def store_tokens(self) -> None:
        """Puts the new tokens where a call appends them, for peers that append nothing."""
        place = slice(self.case.context - self.case.queries, self.case.context)
        for cache, new in ((c, n) for pair in self.caches for c, n in zip(pair, (self.key, self.value), strict=True)):
            cache[:, :, place] = new.transpose(1, 2)

    def pages(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a set as pages [rows x pages, heads, PAGE, D] of the same memory, a row's pages in order."""
        shape = (-1, self.case.kv_heads, PAGE, self.case.head_size)
        key, value = self.caches[index]
        return key.view(shape), value.view(shape)

    def page_table(self) -> torch.Tensor:
        pages = self.case.batch * self.case.context // PAGE
        return torch.arange(pages, dtype=torch.int32, device=self.query.device).view(self.case.batch, -1)


@dataclass(frozen=True)
class Sample:
    """What of a result is checked: heads of rows, and of a long prompt some of its query rows."""

    rows: torch.Tensor  # [n]
    heads: torch.Tensor  # [n] query heads
    queries: torch.Tensor  # [m] places among the new tokens

    @classmethod
    def of(cls, case: Case, device: torch.device) -> Sample:
        pairs = [(row, head) for row in range(case.batch) for head in range(case.q_heads)]
        # The ends, and between them no stride that could meet one head of every group alone.
        between = random.Random(0).sample(pairs[1:-1], min(CHECKED_HEADS, len(pairs)) - 2)
        chosen = [pairs[0], *between, pairs[-1]]
        places = torch.linspace(0, case.queries - 1, min(case.queries, CHECKED_ROWS)).round().long()
        rows, heads = torch.tensor(chosen).T.to(device)
        return cls(rows, heads, places.to(device))

    def take(self, result: torch.Tensor) -> torch.Tensor:
        """[n, m, D] of a result [B, S, Hq, D]."""
        return result[self.rows[:, None], self.queries[None, :], self.heads[:, None]].double()


def head_of_dense(cache: torch.Tensor, row: int, head: int, context: int) -> torch.Tensor:
    return cache[row, head, :context]


def head_of_pages(pages: torch.Tensor, row: int, head: int, context: int) -> torch.Tensor:
    count = context // PAGE
    return pages[row * count : (row + 1) * count, head].reshape(context, -1)


def reference(operands: Operands, sample: Sample, layout: str, query: torch.Tensor, index: int = 0) -> torch.Tensor:
    """float64 attention [n, m, D] of `query` [B, S, Hq, D] over set `index` as it lies in memory now, new tokens and
    all. layout: dense or paged."""
    case = operands.case
    keys, values = operands.pages(index) if layout == "paged" else operands.caches[index]
    head_of = head_of_pages if layout == "paged" else head_of_dense
    scale = operands.pool.scale or 1.0
    places = case.context - case.queries + sample.queries
    hidden = torch.arange(case.context, device=query.device)[None, :] > places[:, None]
    out = []
    for row, head in zip(sample.rows.tolist(), sample.heads.tolist(), strict=True):
        key = head_of(keys, row, head // case.group, case.context).double() * scale
        value = head_of(values, row, head // case.group, case.context).double() * scale
        scores = query[row, sample.queries, head].double() @ key.T / math.sqrt(case.head_size)
        out.append(torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1) @ value)
    return torch.stack(out)


def rotary_tables(positions: int, head_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [positions, D / 2] of the usual base."""
    frequencies = 10000.0 ** (-torch.arange(0, head_size, 2, device=device) / head_size)
    angles = torch.arange(positions, device=device)[:, None] * frequencies[None, :]
    return angles.cos().half(), angles.sin().half()


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, first: int) -> torch.Tensor:
    """x [B, S, H, D] with token s at position first + s: pairs (i, i + D / 2)."""
    place = slice(first, first + x.shape[1])
    c, s = cos[place, None].double(), sin[place, None].double()
    low, high = x.double().chunk(2, dim=-1)
    return torch.cat((low * c - high * s, high * c + low * s), dim=-1)
