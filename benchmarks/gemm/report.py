"""What the rows of bench_gemm.py come to. Needs nothing installed."""

from __future__ import annotations

import statistics

from common.results import by, failures, fastest, quotient, quotients, rounded, run_lines, spread_of, spread_text

PEERS = ("cublas", "cublaslt")  # what ours is held against
STATIC = {"gemv": "A", "flat": "B", "large": "C"}  # kinds, and the paper's names of the implementations
OTHERS = ("compile", "ort")
INT4 = ("int4_32", "int4_128")
EIGHT_BIT = ("int8", "fp8")

FEW_ROWS = 32
GOAL_GEOMEAN, GOAL_MINIMUM = 1.25, 0.97  # of cuBLAS's time over ours, M up to FEW_ROWS
READ_ROWS, READ_BYTES, GOAL_READ = 16, 80_000_000, 0.9
SQUARE, GOAL_SQUARE = (4096, 4096), 1.35  # M up to READ_ROWS
THIN, GOAL_THIN = (896, 4864), 1.6
LARGE_BYTES = 64_000_000
GOAL_INT4_ORT = {"M = 1": 1.6, "M = 2 to 16": 2.5}
GOAL_INT4_F16 = {1: 3.0, 8: 2.5}
GOAL_EIGHT_BIT = 1.7
GOAL_REGRET_MEAN, GOAL_REGRET_WORST, GOAL_REGRET_MODEL = 0.02, 0.08, 0.08


# ---- what follows from one row ----


def shape_of(row: dict) -> tuple[int, int]:
    return row["n"], row["k"]


def shape_text(row: dict) -> str:
    return f"{row['n']}x{row['k']}"


def derive(row: dict, ceiling: float) -> None:
    """Of the main part the best peer, its time over ours, and the part of the read bandwidth that ours reaches; of t3
    what the choices lose against the best."""
    if row["part"] == "main":
        peer, ours = fastest(row, PEERS), row["us"].get("ours")
        row["best_peer"] = peer
        row["ratio"] = rounded(quotient(row, peer, "ours"))
        row["fraction"] = rounded(row["bytes"] / (ours * 1e-6) / ceiling) if ours else None
    elif row["part"] == "t3":
        best = fastest(row, row["us"])
        losses = {who: quotient(row, row.get(who), best) for who in ("chosen", "model")}
        row["best"] = best
        row["regret"] = {who: rounded(loss - 1) for who, loss in losses.items() if loss is not None}


# ---- what follows from all ----


def ratios(rows: list[dict]) -> dict:
    return spread_of(row["ratio"] for row in rows)


def main_summary(rows: list[dict]) -> dict:
    few = [row for row in rows if row["m"] <= FEW_ROWS]
    slow = sorted((row for row in few if row["ratio"] and row["ratio"] < GOAL_MINIMUM), key=lambda row: row["ratio"])
    read = [row for row in rows if row["m"] <= READ_ROWS and row["bytes"] >= READ_BYTES and row["fraction"]]
    unread = sorted((row for row in read if row["fraction"] < GOAL_READ), key=lambda row: row["fraction"])
    return {
        "against_best_peer": ratios(few),
        "by_shape": {name: ratios(group) for name, group in by(few, shape_text).items()},
        "by_rows": {str(m): ratios(group) for m, group in by(rows, lambda row: row["m"]).items()},
        "below_minimum": [[row["key"], row["ratio"], row["best_peer"]] for row in slow],
        "square": ratios([row for row in rows if shape_of(row) == SQUARE and row["m"] <= READ_ROWS]),
        "thin": ratios([row for row in few if shape_of(row) == THIN]),
        "read_fraction": spread_of(row["fraction"] for row in read),
        "read_below_goal": [[row["key"], row["fraction"]] for row in unread],
        "static_over_ours": {
            kind: {
                "all": spread_of(quotients(rows, kind, "ours")),
                "by_rows": {
                    str(m): spread_of(quotients(group, kind, "ours"))
                    for m, group in by(rows, lambda row: row["m"]).items()
                },
            }
            for kind in STATIC
        },
        "others_over_ours": {name: spread_of(quotients(rows, name, "ours")) for name in OTHERS},
        "chosen_by": {who: len(group) for who, group in by(rows, lambda row: row.get("reason", "")).items()},
        "not_measured": [row["key"] for row in rows if not row["us"].get("ours")],
    }


def quantised_summary(rows: list[dict]) -> dict:
    large = [row for row in rows if row["bytes"] >= LARGE_BYTES]
    rows_of = {"M = 1": [row for row in rows if row["m"] == 1], "M = 2 to 16": [row for row in rows if row["m"] > 1]}
    against_ort = {}
    for which, group in rows_of.items():
        pairs = {name: [(row, quotient(row, f"ort_{name}", name)) for row in group] for name in INT4}
        found = [(ratio, row["key"], name) for name, of in pairs.items() for row, ratio in of if ratio is not None]
        against_ort[which] = {
            "both": spread_of(ratio for ratio, _, _ in found),
            **{name: spread_of(ratio for _, ratio in of) for name, of in pairs.items()},
            "below_1": [[key, name, rounded(ratio)] for ratio, key, name in sorted(found) if ratio < 1],
        }
    against_f16 = {
        str(m): {name: spread_of(quotients(group, "f16", name)) for name in (*INT4, *EIGHT_BIT)}
        for m, group in by(large, lambda row: row["m"]).items()
    }
    every = {name: spread_of(quotients(rows, "f16", name)) for name in (*INT4, *EIGHT_BIT)}
    return {"int4_against_ort": against_ort, "large_against_f16": against_f16, "all_against_f16": every}


def t2_summary(rows: list[dict]) -> dict:
    pairs = {
        "one stage / two": ("stages_1", "stages_2"),
        "one stage / deepest": ("stages_1", "stages_most"),
        "two stages / deepest": ("stages_2", "stages_most"),
        "padded to 64 / to 8": ("pad_64", "pad_8"),
        "cuBLAS / padded to 8": ("cublas", "pad_8"),
    }
    return {what: spread_of(quotients(rows, *pair)) for what, pair in pairs.items()}


def t3_summary(rows: list[dict]) -> dict:
    def losses(group: list[dict], who: str) -> dict:
        found = [(row["regret"][who], row["key"]) for row in group if who in row["regret"]]
        worst = max(found, default=(None, None))
        mean = rounded(statistics.fmean(loss for loss, _ in found)) if found else None
        return {"cases": len(found), "mean": mean, "worst": worst[0], "worst_case": worst[1]}

    return {
        "tables": losses(rows, "chosen"),
        "by_reason": {why: losses(group, "chosen") for why, group in by(rows, lambda row: row["reason"]).items()},
        "model": losses(rows, "model"),
    }


SUMMARIES = {"main": main_summary, "quantised": quantised_summary, "t2": t2_summary, "t3": t3_summary}


def summary(content: dict) -> dict:
    """Derives each row's figures anew and returns what all come to."""
    for row in content["rows"]:
        derive(row, content["runs"][row["run"]]["read_ceiling"])
    parts = by(content["rows"], lambda row: row["part"])
    found: dict[str, object] = {"failed": {name: dict(why) for name, why in failures(content["rows"]).items()}}
    return found | {part: SUMMARIES[part](rows) for part, rows in parts.items()}


# ---- in words ----


def lines(content: dict) -> list[str]:
    out = run_lines(content)
    absent = {name: why for run in content["runs"] for name, why in run["absent"].items()}
    out += [f"no {name}: {why}" for name, why in absent.items()]
    for part, in_words in (("main", main_lines), ("quantised", quantised_lines), ("t2", t2_lines), ("t3", t3_lines)):
        if part in content["summary"]:
            out += in_words(content["summary"][part])
    return out


def main_lines(found: dict) -> list[str]:
    out = [
        f"ours against the best of cuBLAS and cuBLASLt, M <= {FEW_ROWS}: {spread_text(found['against_best_peer'])}"
        f" (goals {GOAL_GEOMEAN} and {GOAL_MINIMUM})"
    ]
    out += [f"  {name}: {spread_text(values)}" for name, values in found["by_shape"].items()]
    out += [f"  M = {m}: {spread_text(values)}" for m, values in found["by_rows"].items()]
    out.append(f"  below {GOAL_MINIMUM}: {len(found['below_minimum'])}")
    out += [f"    {ratio:.3f} {key} ({peer})" for key, ratio, peer in found["below_minimum"][:40]]
    out.append(f"4096x4096, M <= {READ_ROWS}: {spread_text(found['square'])} (goal {GOAL_SQUARE})")
    out.append(f"896x4864, M <= {FEW_ROWS}: {spread_text(found['thin'])} (goal {GOAL_THIN})")
    out.append(
        f"part of the read ceiling, weights >= {READ_BYTES // 10**6} MB, M <= {READ_ROWS}: "
        f"{spread_text(found['read_fraction'])} (goal {GOAL_READ}), below it {len(found['read_below_goal'])}"
    )
    out += [f"    {fraction:.3f} {key}" for key, fraction in found["read_below_goal"][:20]]
    for kind, values in found["static_over_ours"].items():
        out.append(f"only {STATIC[kind]} ({kind}) / ours: {spread_text(values['all'])}")
    out += [f"{name} / ours: {spread_text(values)}" for name, values in found["others_over_ours"].items()]
    out.append(f"chosen by: {found['chosen_by']}")
    if found["not_measured"]:
        out.append(f"ours not measured in {len(found['not_measured'])}: {found['not_measured'][:10]}")
    return out


def quantised_lines(found: dict) -> list[str]:
    out = []
    for which, values in found["int4_against_ort"].items():
        goal = GOAL_INT4_ORT[which]
        out.append(f"MatMulNBits / int4, {which}: {spread_text(values['both'])} (goal {goal}, none below 1)")
        out += [f"  {name}: {spread_text(values[name])}" for name in INT4]
        out += [f"    {ratio:.3f} {key} {name}" for key, name, ratio in values["below_1"][:20]]
    for m, values in found["large_against_f16"].items():
        for name, spread in values.items():
            if not spread["cases"]:
                continue
            goal = GOAL_EIGHT_BIT if name in EIGHT_BIT else GOAL_INT4_F16.get(int(m))
            goal_text = f" (goal {goal})" if goal else ""
            what = f"float16 / {name}, M = {m}, weights >= {LARGE_BYTES // 10**6} MB in float16"
            out.append(f"{what}: {spread_text(spread)}{goal_text}")
    out += [f"float16 / {name}, all: {spread_text(spread)}" for name, spread in found["all_against_f16"].items()]
    return out


def t2_lines(found: dict) -> list[str]:
    return [f"T2, {what}: {spread_text(values)}" for what, values in found.items()]


def t3_lines(found: dict) -> list[str]:
    def text(values: dict) -> str:
        if not values["cases"]:
            return "none"
        worst = f"{values['worst']:.2%} at worst ({values['worst_case']})"
        return f"{values['mean']:.2%} slower than the best on average, {worst}, {values['cases']} cases"

    goals = f"(goals {GOAL_REGRET_MEAN:.0%} and {GOAL_REGRET_WORST:.0%})"
    out = [f"T3, tables in force: {text(found['tables'])} {goals}"]
    out += [f"  {why}: {text(values)}" for why, values in found["by_reason"].items()]
    return [*out, f"T3, model of costs: {text(found['model'])} (goal {GOAL_REGRET_MODEL:.0%} on average)"]
