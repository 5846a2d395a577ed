"""Result files, a row a line, and what rows come to. Needs nothing installed."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path


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


def geometric_mean(values: list[float]) -> float | None:
    return math.exp(statistics.fmean(map(math.log, values))) if values else None


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def spread_of(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """None stands for what was not measured."""
    values = [value for value in values if value is not None]
    return {
        "cases": len(values),
        "geometric_mean": rounded(geometric_mean(values)),
        "minimum": rounded(min(values, default=None)),
        "maximum": rounded(max(values, default=None)),
    }


def spread_text(values: dict) -> str:
    if not values["cases"]:
        return "none"
    mean, least, most = (values[name] for name in ("geometric_mean", "minimum", "maximum"))
    return f"geometric mean {mean:.3f}, {least:.3f} to {most:.3f} in {values['cases']} cases"


def quotient(row: dict, above: str | None, below: str | None) -> float | None:
    """The time of one candidate of a row over that of another; None where one was not measured."""
    a, b = row["us"].get(above), row["us"].get(below)
    return a / b if a and b else None


def quotients(rows: list[dict], above: str, below: str) -> list[float]:
    return [value for row in rows if (value := quotient(row, above, below)) is not None]


def fastest(row: dict, names: Iterable[str]) -> str | None:
    found = {name: row["us"][name] for name in names if row["us"].get(name)}
    return min(found, key=found.get) if found else None


def by(rows: list[dict], field: Callable[[dict], object]) -> dict[object, list[dict]]:
    groups: dict[object, list[dict]] = {}
    for row in rows:
        groups.setdefault(field(row), []).append(row)
    return dict(sorted(groups.items()))


def failures(rows: list[dict]) -> dict[str, Counter]:
    """Why candidates failed, and how often."""
    found: dict[str, Counter] = {}
    for row in rows:
        for name, why in row["failed"].items():
            found.setdefault(name, Counter())[why] += 1
    return dict(sorted(found.items()))


def run_lines(content: dict) -> list[str]:
    """What was run, on what, and what failed, in words."""
    out = [f"{len(content['rows'])} cases, {len(content['not_run'])} not run"]
    for run in content["runs"]:
        ceiling, node = run["read_ceiling"] / 1e12, run["empty_node_us"]
        out.append(f"read ceiling {ceiling:.3f} TB/s, empty graph node {node:.2f} us")
        out.append(f"  seconds of preparation, check and capture: {run['preparation_seconds']}")
    for name, reasons in content["summary"]["failed"].items():
        why, _ = max(reasons.items(), key=lambda pair: pair[1])
        out.append(f"{name} failed in {sum(reasons.values())} cases, mostly: {why[:160]}")
    return out
