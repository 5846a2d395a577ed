"""What was timed, kept beside the table: a run that was cut short goes on where it stopped, and a table can be made
anew without timing anything again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import fdpp_ort
from fdpp_ort.errors import FdppError
from fdpp_ort.tuning.attention import AttentionShape
from fdpp_ort.tuning.products import Product

_FORMAT = 1
_FROM_ONE = ("pieces", "cluster", "blocks_per_multiprocessor")  # what of a split has the default 1, not 0
DEVICE_KEYS = {
    "cpu": ("backend", "name", "isa", "threads"),
    "cuda": ("backend", "name", "compute_capability", "multiprocessors"),
}


def device_key(device: dict) -> dict:
    """The facts of a device that decide whether figures hold on it."""
    return {key: device[key] for key in DEVICE_KEYS[device["backend"]]}


@dataclass(frozen=True)
class Candidate:
    """One way to run a product or attention."""

    kind: str  # "gemv", "flat" or "large"; attention has none
    variant: str
    split: tuple[tuple[str, int], ...] = ()  # sorted items without those that are defaults

    @classmethod
    def of(cls, kind: str, variant: str, split: dict[str, int]) -> Candidate:
        return cls(kind, variant, tuple(sorted(item for item in split.items() if item[1] != (item[0] in _FROM_ONE))))


@dataclass(frozen=True)
class Timed:
    candidate: Candidate
    microseconds: float


# What is timed, and where: a product at an M, attention at a batch and context.
Timeable = Product | AttentionShape
Point = int | tuple[int, int]


class Measurements:
    """Times in a file of JSON lines: a head, then a line for each product and M, or attention, batch and context."""

    def __init__(self, path: Path, device: dict, resume: bool = True):
        self.path = path
        self.head = {
            "fdpp_measurements": _FORMAT,
            "library": fdpp_ort.__version__,
            "device": device_key(device),
        }
        self._times: dict[Timeable, dict[Point, list[Timed]]] = {}
        try:
            if resume and path.is_file():
                self._read()
            else:
                path.write_text(json.dumps(self.head) + "\n", encoding="utf-8")
        except OSError as error:
            raise FdppError(f"{path}: the measurements cannot be kept there: {error}") from error

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line is written in one piece and ends with its newline: without one, the run died there.
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            self.path.write_text("".join(lines), encoding="utf-8")
        advice = "give another -o, or --no-resume to time all anew"
        try:
            head, *rows = [json.loads(line) for line in lines]
            if head != self.head:
                raise FdppError(f"{self.path}: measured as {head}, this is {self.head}; {advice}")
            for row in rows:
                times = [Timed(Candidate.of(t["kind"], t["variant"], t["split"]), t["us"]) for t in row["times"]]
                if "attention" in row:
                    what, point = AttentionShape(**row["attention"]), (row["batch"], row["context"])
                else:
                    what, point = Product(**row["product"]), row["m"]
                self._times.setdefault(what, {})[point] = times
        except (ValueError, KeyError, TypeError) as error:
            raise FdppError(f"{self.path}: cannot be read as measurements: {error}; {advice}") from error

    def __iter__(self) -> Iterator[tuple[Product, dict[int, list[Timed]]]]:
        """Products with their times by M, both in order."""
        return self._sorted(Product)

    def attention(self) -> Iterator[tuple[AttentionShape, dict[tuple[int, int], list[Timed]]]]:
        """Shapes with their times by batch and context, both in order."""
        return self._sorted(AttentionShape)

    def _sorted(self, type_: type) -> Iterator:
        for what in sorted(what for what in self._times if isinstance(what, type_)):
            yield what, dict(sorted(self._times[what].items()))

    def of(self, what: Timeable) -> dict[Point, list[Timed]]:
        return self._times.get(what, {})

    def add(self, what: Timeable, point: Point, times: list[Timed]) -> None:
        if isinstance(what, AttentionShape):
            place = {"attention": asdict(what), "batch": point[0], "context": point[1]}
        else:
            place = {"product": asdict(what), "m": point}
        row = place | {
            "times": [
                {
                    "kind": t.candidate.kind,
                    "variant": t.candidate.variant,
                    "split": dict(t.candidate.split),
                    "us": round(t.microseconds, 3),
                }
                for t in times
            ],
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._times.setdefault(what, {})[point] = times
