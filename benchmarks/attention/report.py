"""What the rows of bench_attention.py come to. Needs nothing installed."""

from __future__ import annotations

from common.results import by, failures, fastest, quotient, quotients, rounded, run_lines, spread_of, spread_text

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


# ---- what follows from one row ----


def best_peer(row: dict) -> str | None:
    return fastest(row, PEERS)


def derive(row: dict, ceiling: float, mode: str) -> None:
    """Best peer, its time over ours, and the part of the read bandwidth that ours reaches."""
    ours = row["us"].get(mode)
    peer = best_peer(row)
    row["best_peer"] = peer
    row["ratio"] = round(row["us"][peer] / ours, 4) if ours and peer else None
    row["fraction"] = round(row["bytes"] / (ours * 1e-6) / ceiling, 4) if ours else None


# ---- what follows from all ----


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
        result["rotary"] = [
            [row["key"], row["best_peer"], rounded(quotient(row, mode, row["best_peer"]))] for row in rows
        ]
    if rows := sections.get("cache8"):
        names = sorted({name for row in rows for name in row["us"]} - {mode})
        result["cache8"] = {name: spread_of(quotients(rows, mode, name)) for name in names}
    if rows := sections.get("prefill"):
        result["prefill"] = [[row["key"], row["best_peer"], row["ratio"], _teraflops(row, mode)] for row in rows]
    if rows := sections.get("capacity"):
        names = ("large_buffer", "large_buffer_loose")
        result["capacity"] = {name: spread_of(quotients(rows, name, mode)) for name in names}
    return result


def _teraflops(row: dict, mode: str) -> float | None:
    ours = row["us"].get(mode)
    return round(row["flops"] / ours / 1e6, 1) if ours else None


# ---- in words ----


def lines(content: dict) -> list[str]:
    found = content["summary"]
    out = run_lines(content)
    if decode := found.get("decode"):
        out += _decode_lines(decode)
    if modes := found.get("modes"):
        for name, values in modes["lazy_time_over"].items():
            out.append(f"lazy / {name}: {spread_text(values)}")
        for what, table in (("context", modes["by_context"]), ("new tokens", modes["by_new_tokens"])):
            for group, values in table.items():
                all_modes = [f"lazy / {name} {spread_text(value)}" for name, value in values.items() if value["cases"]]
                out.append(f"  {what} {group}: {'; '.join(all_modes)}")
        out.append(f"cases with rows outside the interval: {len(modes['cases_with_rows_outside'])}")
    for key, peer, value in found.get("rotary", []):
        text = f"{value} of the time of {peer}" if value else "not both measured"
        out.append(f"{key}: {text} (goal for 32/8, batch 1, 1024: at most {GOAL_ORT})")
    for name, values in found.get("cache8", {}).items():
        out.append(f"float16 / {name}: {spread_text(values)} (goal {GOAL_CACHE8})")
    for key, peer, ratio, rate in found.get("prefill", []):
        text = f"{ratio} of the speed of {peer}" if ratio else "no peer measured"
        out.append(f"{key}: {text} (goal {GOAL_PREFILL}), {rate} TFLOP/s")
    for name, values in found.get("capacity", {}).items():
        out.append(f"{name} / own buffer: {spread_text(values)}")
    return out


def _decode_lines(decode: dict) -> list[str]:
    out = [
        f"decode, {decode['mode']} against the best peer: {spread_text(decode['against_best_peer'])}"
        f" (goals {GOAL_GEOMEAN} and {GOAL_MINIMUM})"
    ]
    out += [f"  context {context}: {spread_text(values)}" for context, values in decode["by_context"].items()]
    out += [f"  mode {name}: {spread_text(values)}" for name, values in decode["other_modes"].items()]
    out.append(f"  best peer in cases: {decode['best_peer_in_cases']}")
    out.append(f"  below {GOAL_MINIMUM}: {len(decode['below_minimum'])}")
    out += [f"    {ratio:.3f} {key} ({peer})" for key, ratio, peer in decode["below_minimum"][:40]]
    out.append(f"  K+V of at least 256 MB, part of the ceiling: {spread_text(decode['large_fraction'])}")
    out += [f"    {fraction:.3f} {key}" for key, fraction in decode["large_below_goal"][:20]]
    if decode["not_measured"]:
        out.append(f"  ours not measured in {len(decode['not_measured'])}: {decode['not_measured'][:10]}")
    return out
