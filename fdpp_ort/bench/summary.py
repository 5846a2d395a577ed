"""What a journal's lines come to."""

from __future__ import annotations

import statistics

from fdpp_ort.bench.candidates import Candidate, reference_among
from fdpp_ort.bench.cells import DECODE, Cell
from fdpp_ort.bench.journal import Journal
from fdpp_ort.bench.limit import Limit


def summarise(journal: Journal, cells: list[Cell], candidates: list[Candidate], limit: Limit) -> list[dict]:
    """A row a cell. ms: the median over rounds of the medians over steps; rounds: those; tokens_per_second: of all rows
    together; of_limit: the limit's share of the time; failed: why there is no time."""
    rows = []
    for cell in cells:
        measured = {candidate.name: journal.of(candidate.name, cell) for candidate in candidates}
        seconds = {
            name: [statistics.median(line["seconds"]) for line in lines if "seconds" in line]
            for name, lines in measured.items()
        }
        middle = {name: statistics.median(values) for name, values in seconds.items() if values}
        least = limit.seconds(cell)
        new = cell.batch * (1 if cell.phase == DECODE else cell.tokens)
        rows.append(
            {
                "phase": cell.phase,
                "batch": cell.batch,
                "tokens": cell.tokens,
                "bytes_read": limit.bytes_read(cell),
                "limit_ms": None if least is None else round(1e3 * least, 4),
                "ms": {name: round(1e3 * value, 4) for name, value in middle.items()},
                "rounds": {name: [round(1e3 * value, 4) for value in values] for name, values in seconds.items()},
                "tokens_per_second": {name: round(new / value, 2) for name, value in middle.items()},
                "of_limit": {} if least is None else {name: round(least / v, 4) for name, v in middle.items()},
                "peak_memory_bytes": {
                    name: max(line["peak_memory_bytes"] for line in lines if "seconds" in line)
                    for name, lines in measured.items()
                    if name in middle
                },
                "failed": {
                    name: line["error"] for name, lines in measured.items() for line in lines if "error" in line
                },
            }
        )
    return rows


def ratios(rows: list[dict], above: str, below: str) -> dict[str, dict]:
    """By phase: how many times as long `above` takes as `below`, where both were measured: in the median of the rounds
    that both have."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        pairs = list(zip(row["rounds"].get(above, []), row["rounds"].get(below, []), strict=False))
        if pairs:
            cell = Cell(row["phase"], row["batch"], row["tokens"])
            found.setdefault(row["phase"], {})[cell.key] = statistics.median(a / b for a, b in pairs)
    return {
        phase: {
            "geometric_mean": round(statistics.geometric_mean(values.values()), 4),
            "least": round(min(values.values()), 4),
            "least_in": min(values, key=values.get),
            "cells": len(values),
        }
        for phase, values in found.items()
    }


def comparisons(rows: list[dict], names: list[str]) -> dict[str, dict]:
    """By "A / B": everything over ours, with the CUDA graph where there is one, and GenAI over GenAI with our graph."""
    ours = reference_among(names)
    pairs = [(name, ours) for name in names if ours and name != ours]
    if {"genai", "fdpp-genai"} <= set(names):
        pairs.append(("genai", "fdpp-genai"))
    found = {f"{above} / {below}": ratios(rows, above, below) for above, below in pairs}
    return {pair: value for pair, value in found.items() if value}
