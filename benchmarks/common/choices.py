"""A table of fdpp-tune's, and what it would be with another choice in one place."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from fdpp_ort.tuning.attention import AttentionShape
from fdpp_ort.tuning.measurements import Candidate
from fdpp_ort.tuning.products import Product


@dataclass(frozen=True)
class Span:
    """Ms, batches or contexts from `first` to `last`, both included."""

    first: int
    last: int

    @classmethod
    def below(cls, point: int, points: tuple[int, ...]) -> Span:
        """What is found at `point` holds from beyond the one before it on: `points` are rising."""
        return cls(max((p for p in points if p < point), default=0) + 1, point)


def product_choice(table: dict, product: Product, m: int) -> Candidate | None:
    """None: the table has no entry for the product."""
    entry = _entry(table, product)
    return None if entry is None else _candidate(_in_force(entry["ranges"], "from", m))


def attention_choice(table: dict, shape: AttentionShape, batch: int, context: int) -> Candidate | None:
    entry = _attention_entry(table, shape)
    if entry is None:
        return None
    rows = _by_batch(entry["ranges"])
    return _candidate(_in_force(rows[_start(rows, batch)], "context", context))


def with_product(table: dict, product: Product, rows: Span, choice: Candidate) -> dict:
    """The table has an entry for the product."""
    table = copy.deepcopy(table)
    entry = _entry(table, product)
    entry["ranges"] = _put(entry["ranges"], "from", rows, choice)
    # M1 is for shapes near this one, and for their variants of another kind.
    beyond = [r["from"] for r in entry["ranges"] if r["variant"] != "cuda_gemv"]
    entry["m1"] = min([*beyond, entry["m2"]])
    return table


def with_attention(table: dict, shape: AttentionShape, batches: Span, contexts: Span, choice: Candidate) -> dict:
    """The table has an entry for the shape."""
    table = copy.deepcopy(table)
    entry = _attention_entry(table, shape)
    rows = _by_batch(entry["ranges"])
    for start in (batches.first, batches.last + 1):
        rows[start] = copy.deepcopy(rows[_start(rows, start)])
    for start in rows:
        if batches.first <= start <= batches.last:
            rows[start] = _put(rows[start], "context", contexts, choice)
    found, before = [], None
    for start, ranges in sorted(rows.items()):
        if ranges != before:
            found += [{"batch": start, **r} for r in ranges]
        before = ranges
    entry["ranges"] = found
    return table


def _entry(table: dict, product: Product) -> dict | None:
    wanted = (product.n, product.k, product.dtype, product.weight_format, product.block_size)
    keys = ("n", "k", "dtype", "weight_format")
    return next((e for e in table["gemm"] if (*(e[key] for key in keys), e.get("block_size", 0)) == wanted), None)


def _attention_entry(table: dict, shape: AttentionShape) -> dict | None:
    return next((e for e in table["attention"] if all(e[key] == value for key, value in vars(shape).items())), None)


def _by_batch(ranges: list[dict]) -> dict[int, list[dict]]:
    """The ranges over contexts, by the batch from which on they hold."""
    rows: dict[int, list[dict]] = {}
    for r in ranges:
        rows.setdefault(r["batch"], []).append({key: value for key, value in r.items() if key != "batch"})
    return rows


def _start(rows: dict[int, list[dict]], batch: int) -> int:
    return max(start for start in rows if start <= batch)


def _in_force(ranges: list[dict], key: str, value: int) -> dict:
    return [r for r in ranges if r[key] <= value][-1]


def _candidate(r: dict) -> Candidate:
    return Candidate.of("", r["variant"], r["split"])


def _put(ranges: list[dict], key: str, span: Span, choice: Candidate) -> list[dict]:
    new = [r for r in ranges if r[key] < span.first]
    new.append({key: span.first, "variant": choice.variant, "split": dict(choice.split)})
    new.append({**_in_force(ranges, key, span.last + 1), key: span.last + 1})
    new += [r for r in ranges if r[key] > span.last + 1]
    same = [False] + [_candidate(a) == _candidate(b) for a, b in zip(new, new[1:], strict=False)]
    return [r for r, drop in zip(new, same, strict=True) if not drop]
