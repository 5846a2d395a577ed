"""What was measured, a line each in a file beside the results, so that a run that was cut short goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from fdpp_ort.bench.cells import Cell
from fdpp_ort.errors import FdppError

_FORMAT = 1


class Journal:
    """Lines: {"machine": ...} for each run, {"cell", "candidate", "round", "run", "seconds": [...] or "error": why}."""

    def __init__(self, path: Path, about: dict, resume: bool):
        """about: the model and how it is measured; lines of others are not gone on with."""
        self.path = path
        self.runs: list[dict] = []
        self.lines: list[dict] = []
        head = {"fdpp_bench": _FORMAT, **about}
        try:
            if resume and path.is_file():
                self._read(head)
            else:
                path.write_text(json.dumps(head) + "\n", encoding="utf-8")
        except OSError as error:
            raise FdppError(f"{path}: the measurements cannot be kept there: {error}") from error

    def _read(self, expected: dict) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line is written in one piece and ends with its newline: without one, the run died there.
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            self.path.write_text("".join(lines), encoding="utf-8")
        try:
            head, *rest = map(json.loads, lines)
        except ValueError as error:
            raise FdppError(f"{self.path}: cannot be read as measurements: {error}; leave out --resume") from error
        if head != expected:
            raise FdppError(f"{self.path}: measured as {head}, this is {expected}; leave out --resume, or change -o")
        for line in rest:
            self.runs.append(line["machine"]) if "machine" in line else self.lines.append(line)

    def begin_run(self, machine: dict) -> None:
        self.runs.append(machine)
        self._append({"machine": machine})

    def add(self, candidate: str, cell: Cell, turn: int, outcome: dict) -> dict:
        line = {"cell": asdict(cell), "candidate": candidate, "round": turn, "run": len(self.runs) - 1, **outcome}
        self.lines.append(line)
        self._append(line)
        return line

    def _append(self, line: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def of(self, candidate: str, cell: Cell) -> list[dict]:
        return [line for line in self.lines if line["candidate"] == candidate and line["cell"] == asdict(cell)]

    def needs(self, candidate: str, cell: Cell, turn: int) -> bool:
        """Whether it was not measured in round `turn`, and has not failed in any."""
        return not any("error" in line or line["round"] == turn for line in self.of(candidate, cell))
