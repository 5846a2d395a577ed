"""The result file, its merging, and what its rows come to. Needs nothing installed."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path

OURS = ("lazy", "unified", "online")
PEERS = ("flashinfer", "flashinfer_tc", "xqa", "fa2", "cudnn", "cudnn_packed", "fa2_tokens", "cudnn_tokens")
PEERS += ("ort", "ort_xqa", "ort_flash", "ort_cudnn")
GOAL_GEOMEAN = 1.15
GOAL_MINIMUM = 0.97
GOAL_BANDWIDTH = 0.93
GOAL_ORT = 0.75
GOAL_CACHE8 = 1.7
GOAL_PREFILL = 0.95
LARGE_BYTES = 256 << 20


def write(path: Path, content: dict) -> None:
    """In one step, so that a run that is killed leaves the last complete file."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text_of(content), encoding="utf-8")
    os.replace(beside, path)


def text_of(content: dict) -> str:
    """JSON with a row a line."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in content["rows"])
    head = json.dumps({key: value for key, value in content.items() if key != "rows"}, indent=1)
    return f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def merged(contents: list[dict]) -> dict:
    """The rows of all; of rows of one case the last that came."""
    runs, rows = [], {}
    for content in contents:
        rows |= {row["key"]: {**row, "run": len(runs) + row["run"]} for row in content["rows"]}
        runs += content["runs"]
    not_run = {key for content in contents for key in content["not_run"]} - set(rows)
    return {**contents[-1], "runs": runs, "not_run": sorted(not_run), "rows": list(rows.values())}


# ---- what follows from one row ----


def best_peer(row: dict) -> str | None:
    found = {name: row["us"][name] for name in PEERS if row["us"].get(name)}
    return min(found, key=found.get) if found else None


def derive(row: dict, ceiling: float, mode: str) -> None:
    """Best peer, its time over ours, and the part of the read bandwidth that ours reaches."""
    ours = row["us"].get(mode)
    peer = best_peer(row)
    row["best_peer"] = peer
    row["ratio"] = round(row["us"][peer] / ours, 4) if ours and peer else None
    row["fraction"] = round(row["bytes"] / (ours * 1e-6) / ceiling, 4) if ours else None


# ---- what follows from all ----


def geometric_mean(values: list[float]) -> float | None:
    return math.exp(statistics.fmean(map(math.log, values))) if values else None


def spread_of(values: list[float]) -> dict[str, float | int | None]:
    return {
        "cases": len(values),
        "geometric_mean": _rounded(geometric_mean(values)),
        "minimum": _rounded(min(values, default=None)),
        "maximum": _rounded(max(values, default=None)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def quotients(rows: list[dict], above: str, below: str) -> list[float]:
    pairs = [(row["us"].get(above), row["us"].get(below)) for row in rows]
    return [a / b for a, b in pairs if a and b]


def by(rows: list[dict], field: Callable[[dict], object]) -> dict[object, list[dict]]:
    groups: dict[object, list[dict]] = {}
    for row in rows:
        groups.setdefault(field(row), []).append(row)
    return dict(sorted(groups.items()))


def context_of(row: dict) -> int:
    return row["case"]["context"]


def decode_summary(rows: list[dict], mode: str) -> dict:
    def against_best(group: list[dict], ours: str) -> dict:
        found = [(row["us"].get(ours), best_peer(row), row) for row in group]
        return spread_of([row["us"][peer] / us for us, peer, row in found if us and peer])

    large = [row for row in rows if row["bytes"] >= LARGE_BYTES and row["fraction"]]
    slow = sorted((row for row in rows if row["ratio"] and row["ratio"] < GOAL_MINIMUM), key=lambda row: row["ratio"])
    below = sorted((row for row in large if row["fraction"] < GOAL_BANDWIDTH), key=lambda row: row["fraction"])
    best = by([row for row in rows if row["best_peer"]], lambda row: row["best_peer"])
    return {
        "mode": mode,
        "against_best_peer": against_best(rows, mode),
        "by_context": {str(n): against_best(group, mode) for n, group in by(rows, context_of).items()},
        "other_modes": {name: against_best(rows, name) for name in OURS if name != mode},
        "best_peer_in_cases": {str(name): len(group) for name, group in best.items()},
        "below_minimum": [[row["key"], row["ratio"], row["best_peer"]] for row in slow],
        "large_fraction": spread_of([row["fraction"] for row in large]),
        "large_below_goal": [[row["key"], row["fraction"]] for row in below],
        "not_measured": [row["key"] for row in rows if not row["us"].get(mode)],
    }


def failures(rows: list[dict]) -> dict[str, Counter]:
    """Why candidates failed, and how often."""
    found: dict[str, Counter] = {}
    for row in rows:
        for name, why in row["failed"].items():
            found.setdefault(name, Counter())[why] += 1
    return dict(sorted(found.items()))


def modes_summary(rows: list[dict]) -> dict:
    """Time of lazy over that of the others: above 1 where the other mode is faster."""

    def table(group: list[dict]) -> dict:
        return {name: spread_of(quotients(group, "lazy", name)) for name in ("unified", "online", "unified_missed")}

    contexts = by([row for row in rows if row["section"] == "decode"], context_of)
    lengths = by([row for row in rows if row["section"] == "queries"], lambda row: row["case"]["queries"])
    outside = [row["key"] for row in rows if row["rows_outside"].get("unified")]
    return {
        "lazy_time_over": table(rows),
        "by_context": {str(n): table(group) for n, group in contexts.items()},
        "by_new_tokens": {str(s): table(group) for s, group in lengths.items()},
        "cases_with_rows_outside": outside,
    }


def summary(content: dict) -> dict:
    """Derives each row's figures anew and returns what all come to."""
    mode = content["mode"]
    for row in content["rows"]:
        derive(row, content["runs"][row["run"]]["read_ceiling"], mode)
    sections = by(content["rows"], lambda row: row["section"])
    result: dict[str, object] = {"failed": {name: dict(reasons) for name, reasons in failures(content["rows"]).items()}}
    if rows := sections.get("decode"):
        result["decode"] = decode_summary(rows, mode)
    with_modes = [row for name in ("decode", "queries", "prefill") for row in sections.get(name, [])]
    if with_modes:
        result["modes"] = modes_summary(with_modes)
    if rows := sections.get("rotary"):
        result["rotary"] = [[row["key"], row["best_peer"], _quotient(row, mode, row["best_peer"])] for row in rows]
    if rows := sections.get("cache8"):
        names = sorted({name for row in rows for name in row["us"]} - {mode})
        result["cache8"] = {name: spread_of(quotients(rows, mode, name)) for name in names}
    if rows := sections.get("prefill"):
        result["prefill"] = [[row["key"], row["best_peer"], row["ratio"], _teraflops(row, mode)] for row in rows]
    if rows := sections.get("capacity"):
        names = ("large_buffer", "large_buffer_loose")
        result["capacity"] = {name: spread_of(quotients(rows, name, mode)) for name in names}
    return result


def _quotient(row: dict, above: str, below: str | None) -> float | None:
    a, b = row["us"].get(above), row["us"].get(below)
    return round(a / b, 4) if a and b else None


def _teraflops(row: dict, mode: str) -> float | None:
    ours = row["us"].get(mode)
    return round(row["flops"] / ours / 1e6, 1) if ours else None


# ---- in words ----


def lines(content: dict) -> list[str]:
    found = content["summary"]
    out = [f"{len(content['rows'])} cases, {len(content['not_run'])} not run"]
    for run in content["runs"]:
        ceiling, node = run["read_ceiling"] / 1e12, run["empty_node_us"]
        out.append(f"read ceiling {ceiling:.3f} TB/s, empty graph node {node:.2f} us")
        out.append(f"  seconds of preparation, check and capture: {run['preparation_seconds']}")
    for name, reasons in found["failed"].items():
        why, _ = max(reasons.items(), key=lambda pair: pair[1])
        out.append(f"{name} failed in {sum(reasons.values())} cases, mostly: {why[:160]}")
    if decode := found.get("decode"):
        out += _decode_lines(decode)
    if modes := found.get("modes"):
        for name, values in modes["lazy_time_over"].items():
            out.append(f"lazy / {name}: {_spread_text(values)}")
        for what, table in (("context", modes["by_context"]), ("new tokens", modes["by_new_tokens"])):
            for group, values in table.items():
                all_modes = [f"lazy / {name} {_spread_text(value)}" for name, value in values.items() if value["cases"]]
                out.append(f"  {what} {group}: {'; '.join(all_modes)}")
        out.append(f"cases with rows outside the interval: {len(modes['cases_with_rows_outside'])}")
    for key, peer, value in found.get("rotary", []):
        text = f"{value} of the time of {peer}" if value else "not both measured"
        out.append(f"{key}: {text} (goal for 32/8, batch 1, 1024: at most {GOAL_ORT})")
    for name, values in found.get("cache8", {}).items():
        out.append(f"float16 / {name}: {_spread_text(values)} (goal {GOAL_CACHE8})")
    for key, peer, ratio, rate in found.get("prefill", []):
        text = f"{ratio} of the speed of {peer}" if ratio else "no peer measured"
        out.append(f"{key}: {text} (goal {GOAL_PREFILL}), {rate} TFLOP/s")
    for name, values in found.get("capacity", {}).items():
        out.append(f"{name} / own buffer: {_spread_text(values)}")
    return out


def _decode_lines(decode: dict) -> list[str]:
    out = [
        f"decode, {decode['mode']} against the best peer: {_spread_text(decode['against_best_peer'])}"
        f" (goals {GOAL_GEOMEAN} and {GOAL_MINIMUM})"
    ]
    out += [f"  context {context}: {_spread_text(values)}" for context, values in decode["by_context"].items()]
    out += [f"  mode {name}: {_spread_text(values)}" for name, values in decode["other_modes"].items()]
    out.append(f"  best peer in cases: {decode['best_peer_in_cases']}")
    out.append(f"  below {GOAL_MINIMUM}: {len(decode['below_minimum'])}")
    out += [f"    {ratio:.3f} {key} ({peer})" for key, ratio, peer in decode["below_minimum"][:40]]
    out.append(f"  K+V of at least 256 MB, part of the ceiling: {_spread_text(decode['large_fraction'])}")
    out += [f"    {fraction:.3f} {key}" for key, fraction in decode["large_below_goal"][:20]]
    if decode["not_measured"]:
        out.append(f"  ours not measured in {len(decode['not_measured'])}: {decode['not_measured'][:10]}")
    return out


def _spread_text(values: dict) -> str:
    if not values["cases"]:
        return "none"
    mean, least, most = (values[name] for name in ("geometric_mean", "minimum", "maximum"))
    return f"geometric mean {mean:.3f}, {least:.3f} to {most:.3f} in {values['cases']} cases"
