"""Which candidate measures what when: rounds in which each has its turn, within a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fdpp_ort.bench.candidates import Candidate
from fdpp_ort.bench.cells import Cell
from fdpp_ort.bench.journal import Journal
from fdpp_ort.bench.process import Worker, WorkerEnded

LOAD_SECONDS = 600
CELL_SECONDS = 180  # after which a candidate is taken to hang
_RESERVE = 1.3  # of what a cell took before, or one like it


@dataclass
class Schedule:
    """fits: why a cell cannot fit the machine's memory, or "". used: bytes in use on the GPU, None on a CPU. show: told
    what goes on. deadline: by time.monotonic(), None: without one."""

    journal: Journal
    cells: list[Cell]
    fits: Callable[[Cell], str]
    used: Callable[[], int | None]
    show: Callable[[str], None]
    deadline: float | None = None

    def run(self, candidates: list[Candidate], rounds: int) -> None:
        turns = [(turn, candidate) for turn in range(1, rounds + 1) for candidate in candidates]
        while turns := [(turn, candidate) for turn, candidate in turns if self._open(candidate, turn)]:
            before = len(self.journal.lines)
            for position, (turn, candidate) in enumerate(turns):
                until = None
                if self.deadline is not None:
                    # An equal share of what is left: what a fast candidate leaves goes to those behind it.
                    left = self.deadline - time.monotonic()
                    until = time.monotonic() + left / (len(turns) - position)
                self._turn(candidate, turn, until)
            # What is left now goes to what was left out before, as long as that brings anything.
            if len(self.journal.lines) == before:
                return

    def left_out(self, candidates: list[Candidate], rounds: int) -> list[str]:
        return [
            f"{candidate.name}, {cell.key}, round {turn}"
            for candidate in candidates
            for cell in self.cells
            for turn in range(1, rounds + 1)
            if self.journal.needs(candidate.name, cell, turn)
        ]

    def _turn(self, candidate: Candidate, turn: int, until: float | None) -> None:
        while cells := self._open(candidate, turn):
            cheapest = min(self._seconds_of(candidate, cell) for cell in cells)
            if not self._in_time(self._seconds_of(candidate, None) + cheapest, until):
                return
            if self._work(candidate, cells, turn, until):
                return

    def _open(self, candidate: Candidate, turn: int) -> list[Cell]:
        """What is left of this turn, without what cannot fit."""
        found = []
        for cell in self.cells:
            if not self.journal.needs(candidate.name, cell, turn):
                continue
            if why := self.fits(cell):
                self._keep(candidate, cell, turn, {"error": why})
            else:
                found.append(cell)
        return found

    def _work(self, candidate: Candidate, cells: list[Cell], turn: int, until: float | None) -> bool:
        """In one process; False where that ended, or may be in no state to go on, before all was tried. Cells that
        would end too late are left out."""
        with Worker(candidate, self.used) as worker:
            self.show(f"round {turn}: {candidate.name}")
            try:
                loaded = worker.answer(self._limit(LOAD_SECONDS))
            except WorkerEnded as error:
                loaded = {"error": str(error)}
            if "error" in loaded:
                if not self._out_of_time():
                    for cell in cells:
                        self._keep(candidate, cell, turn, {"error": f"does not load: {loaded['error']}"})
                return True
            for cell in cells:
                if not self._in_time(self._seconds_of(candidate, cell), until):
                    continue
                try:
                    outcome = worker.measure(cell, self._limit(CELL_SECONDS))
                except WorkerEnded as error:
                    if self._out_of_time():
                        return True
                    self._keep(candidate, cell, turn, {"error": str(error)})
                    return False
                outcome["load_seconds"] = loaded["took"]
                self._keep(candidate, cell, turn, outcome)
                if "error" in outcome:
                    return False
        return True

    def _keep(self, candidate: Candidate, cell: Cell, turn: int, outcome: dict) -> None:
        self.journal.add(candidate.name, cell, turn, outcome)
        if "error" in outcome:
            self.show(f"  {candidate.name}, {cell.key}: failed: {outcome['error']}")

    def _seconds_of(self, candidate: Candidate, cell: Cell | None) -> float:
        """What it took before to load, or to measure a cell: that one, or the longest of its phase."""
        mine = [line for line in self.journal.lines if line["candidate"] == candidate.name and "seconds" in line]
        if cell is None:
            return max((line["load_seconds"] for line in mine), default=0.0)
        same = [line["took"] for line in mine if line["cell"]["phase"] == cell.phase]
        exact = [line["took"] for line in self.journal.of(candidate.name, cell) if "seconds" in line]
        return max(exact or same, default=0.0)

    def _in_time(self, seconds: float, until: float | None) -> bool:
        return until is None or time.monotonic() + _RESERVE * seconds < until

    def _limit(self, seconds: float) -> float:
        return seconds if self.deadline is None else min(seconds, self.deadline - time.monotonic())

    def _out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline
