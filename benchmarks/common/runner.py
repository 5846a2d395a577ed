"""Runs cases one by one within a time: a case's candidates are prepared, checked, captured and replayed in turns, and
its row is kept as soon as it is there.

A candidate has run(index), which returns its result, `sets`, the number of operand sets that `index` counts, check(),
which returns the relative error of a result or raises, and `note`, which goes into the row. A case has `key`.
"""

from __future__ import annotations

import faulthandler
import json
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import machine

from common import results

CASE_SECONDS = 90  # after which a case is taken to hang, and the process ends
TIMING = "timing"  # stands for the candidate while all are timed
BUDGET_RESERVE = 5  # seconds for the summary and the end of the process


def reason(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def marker_of(output: Path) -> Path:
    """Says what is running: what it names when a new process finds it ended the last one."""
    return output.with_name(output.name + ".running")


def mark(marker: Path, key: str, candidate: str) -> None:
    marker.write_text(json.dumps({"case": key, "candidate": candidate}), encoding="utf-8")


def new_row(key: str, content: dict) -> dict:
    failed = dict(content["ended_by"].get(key, {}))
    return {"key": key, "us": {}, "spread": {}, "error": {}, "note": {}, "failed": failed}


@dataclass
class Ready:
    """A candidate and what is replayed in its place: kept with it, since a graph knows addresses alone."""

    candidate: object
    graph: object
    calls: int


@dataclass
class Bench:
    timer: object
    marker: Path
    queued: Collection[str]  # candidates that are launched call by call where they cannot be captured
    preparing: dict[str, float] = field(default_factory=dict)  # seconds of preparation, check and capture by candidate

    def prepare(self, row: dict, plan: dict[str, Callable[[], object]], account: str = "") -> dict[str, Ready]:
        """Makes, checks and captures what is planned; who fails leaves the reason in the row. `account`: what the time
        counts as, if not as the candidate's own."""
        import torch

        ready = {}
        for name, make in plan.items():
            row["us"][name] = None
            if name in row["failed"]:
                continue
            mark(self.marker, row["key"], name)
            begun = time.monotonic()
            try:
                candidate = make()
                row["error"][name] = float(f"{candidate.check():.2e}")
                ready[name] = self._captured(name, candidate)
            except Exception as error:
                row["failed"][name] = reason(error)
                # An error that stays with the context raises here, outside the try.
                torch.cuda.synchronize()
                continue
            finally:
                spent = account or name
                self.preparing[spent] = round(self.preparing.get(spent, 0) + time.monotonic() - begun, 3)
            if candidate.note:
                row["note"][name] = candidate.note
        return ready

    def _captured(self, name: str, candidate) -> Ready:
        from timing import Queue

        try:
            return Ready(candidate, self.timer.capture(candidate.run, candidate.sets), candidate.sets)
        except Exception as error:
            if name not in self.queued:
                raise
            candidate.note = f"no graph: {reason(error)}"
            queue = Queue(candidate.run, candidate.sets)
            queue.replay()
            return Ready(candidate, queue, queue.count)

    def measure(self, row: dict, ready: dict[str, Ready], replays: int) -> None:
        """Median time of each by name, and how far its replays lie apart."""
        mark(self.marker, row["key"], TIMING)
        graphs = {name: (one.graph, one.calls) for name, one in ready.items()}
        for name, times in self.timer.measure(graphs, replays).items() if graphs else ():
            middle = statistics.median(times)
            row["us"][name] = round(middle, 3)
            row["spread"][name] = round((max(times) - min(times)) / middle, 4)


def begin(output: Path, resume: bool, **fields: object) -> dict:
    """New content, or with `resume` that of the last run and what ended it."""
    content = {"unit": "microseconds", **fields, "runs": [], "not_run": [], "ended_by": {}, "rows": []}
    marker = marker_of(output)
    if not resume:
        marker.unlink(missing_ok=True)
        return content
    if output.exists():
        content = results.read(output)
    if marker.exists():
        ended = json.loads(marker.read_text(encoding="utf-8"))
        content["ended_by"].setdefault(ended["case"], {})[ended["candidate"]] = "the process ended while it ran"
        marker.unlink()
        results.write(output, content)
    return content


def begin_run(content: dict, bench: Bench, packages: tuple[str, ...], ceiling_data, started: float) -> dict:
    """Adds to the content where and with what this process runs, and what memory and launches allow there."""
    from fdpp_ort import _core

    head = {
        **machine.describe(packages),
        "device": _core.gpu_device(0),
        "read_ceiling": bench.timer.read_ceiling(ceiling_data),
        "empty_node_us": round(bench.timer.empty_node(), 3),
        "seconds_before_first_case": round(time.monotonic() - started, 1),
        "preparation_seconds": bench.preparing,
    }
    content["runs"].append(head)
    return head


def run_cases(
    wanted: Sequence,
    content: dict,
    output: Path,
    measure: Callable[[object], dict],
    estimate: Callable[[object], float],
    show: Callable[[dict], None],
    deadline: float | None,
) -> None:
    """Adds the row of each case to the content and writes the file. No case starts that would end after `deadline`, by
    its estimated seconds on the GPU and by what the last cases took; those left out are named."""
    seconds: list[float] = []
    for position, case in enumerate(wanted):
        expected = estimate(case) + (1.5 * statistics.fmean(seconds[-20:]) if seconds else 0)
        if deadline is not None and time.monotonic() + expected + BUDGET_RESERVE > deadline:
            content["not_run"] = [left.key for left in wanted[position:]]
            return
        begun = time.monotonic()
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        row = measure(case)
        faulthandler.cancel_dump_traceback_later()
        row["run"] = len(content["runs"]) - 1
        row["seconds"] = round(time.monotonic() - begun, 2)
        seconds.append(row["seconds"])
        content["rows"].append(row)
        content["not_run"] = [left.key for left in wanted[position + 1 :]]
        results.write(output, content)
        marker_of(output).unlink(missing_ok=True)
        show(row)


def finish(output: Path, content: dict, summary: Callable[[dict], dict], lines: Callable[[dict], list[str]]) -> None:
    """Adds the summary, writes the file and prints what it says."""
    content["summary"] = summary(content)
    results.write(output, content)
    print("\n".join(lines(content)))


def row_text(row: dict) -> str:
    """A row in a line."""
    figures = "  ".join(f"{name} {us:.1f}" if us else f"{name} -" for name, us in row["us"].items())
    ratio = "" if row.get("ratio") is None else f"  x{row['ratio']:.2f}"
    return f"{row['key']:34} {figures}{ratio}  ({row['seconds']} s)"
