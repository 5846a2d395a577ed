"""Steps that each make one folder, done once: redone when what they depend on changes or when they were interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn


class StepError(Exception):
    """A step's command failed; the message says which and ends with its last lines."""


@dataclass(frozen=True)
class Step:
    """`commands(out)` are run one after the other and make the folder `out`; `depends` is all that decides its content.
    `fraction(line)`, from 0 to 1, reads progress out of a line of output."""

    name: str
    title: str
    depends: dict[str, object]
    commands: Callable[[Path], list[list[str]]]
    fraction: Callable[[str], float | None] = lambda line: None

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.depends, sort_keys=True).encode()).hexdigest()


def percentage(line: str) -> float | None:
    """The progress in a line of tqdm's ("45%|") or of pip's raw kind ("Progress 12 of 34")."""
    if found := re.search(r"(\d+)%\|", line):
        return int(found[1]) / 100
    if found := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
        return int(found[1]) / max(int(found[2]), 1)
    return None


class Workshop:
    """The folder that holds the results, each with a file that says what it was made from."""

    def __init__(self, folder: Path, console: Console):
        self.folder = folder
        self.console = console
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, step: Step) -> Path:
        """Makes the step's folder where it is not there yet, and returns it. StepError: a command failed."""
        out = self.folder / step.name
        marker = self.folder / f"{step.name}.made-from"
        if out.is_dir() and marker.is_file() and marker.read_text(encoding="utf-8") == step.key:
            self.console.print(f"[green]✓[/] {step.title} [dim](done before)[/]")
            return out
        partial = self.folder / f"{step.name}.partial"
        marker.unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        log = self.folder / f"{step.name}.log"
        with self._progress() as progress, log.open("w", encoding="utf-8") as log_file:
            task = progress.add_task(step.title, total=None)
            for command in step.commands(partial):
                progress.update(task, total=None, completed=0)
                for line in run_lines(command, self.folder, log):
                    log_file.write(line + "\n")
                    fraction = step.fraction(line)
                    if fraction is not None:
                        progress.update(task, total=1, completed=fraction)
            progress.update(task, total=1, completed=1)
        partial.rename(out)
        unfinished = marker.with_suffix(".writing")
        unfinished.write_text(step.key, encoding="utf-8")
        unfinished.rename(marker)
        self.console.print(f"[green]✓[/] {step.title}")
        return out

    def _progress(self) -> Progress:
        interactive = self.console.is_terminal
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
        return Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True, disable=not interactive)


def run_lines(command: list[str], folder: Path, log: Path) -> Iterator[str]:
    """Runs a command in `folder` and yields its lines of output, also those that overwrite each other. StepError: it
    failed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    last: list[str] = []
    # Not in the source tree, whose fdpp_ort would hide the installed one. Universal newlines split at the carriage
    # returns of progress bars, too.
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        for line in process.stdout:
            line = line.rstrip("\n")
            last = [*last[-9:], line]
            yield line
    if process.returncode != 0:
        shown = " ".join(command)
        raise StepError(f"exit status {process.returncode} of: {shown}\n" + "\n".join(last) + f"\n(all of it: {log})")
