"""The same prompt to several models, each in a process of its own, and their answers and figures side by side."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import track
from rich.table import Table


@dataclass(frozen=True)
class Candidate:
    """One way to run the model. `exact`: its greedy tokens must be those of the first candidate of its device."""

    title: str
    folder: Path
    device: str  # cpu or cuda
    exact: bool
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """What fdpp-generate says of a candidate."""

    candidate: Candidate
    prompt_tokens: int
    tokens: list[int]
    text: str
    decode: float  # tokens/s
    prefill: float  # tokens/s
    load: float  # seconds, a first run of one token included
    peak_memory: int  # bytes
    onnxruntime: str


def generate(candidate: Candidate, prompt_file: Path, max_new_tokens: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "statistics.json"
        command = [sys.executable, "-m", "fdpp_ort.cli.generate", str(candidate.folder), "-f", str(prompt_file)]
        command += ["--max-new-tokens", str(max_new_tokens), "--provider", candidate.device]
        command += ["--stats-json", str(file), *candidate.options]
        # Not in the source tree, whose fdpp_ort would hide the installed one.
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{candidate.title}: {done.stderr.strip()}")
        statistics = json.loads(file.read_text(encoding="utf-8"))
    return Run(
        candidate=candidate,
        prompt_tokens=statistics["prompt_tokens"],
        tokens=statistics["tokens"],
        text=statistics["text"],
        decode=statistics["decode_tokens_per_second"],
        prefill=statistics["prefill_tokens_per_second"],
        load=statistics["load_seconds"],
        peak_memory=statistics["peak_memory_bytes"],
        onnxruntime=statistics["onnxruntime"],
    )


def compare(candidates: list[Candidate], prompt_file: Path, max_new_tokens: int, console: Console) -> bool:
    """Prints texts, a verdict on the tokens and a table. False where tokens that must be identical are not."""
    runs = []
    for candidate in track(candidates, "generating", console=console, transient=True, disable=not console.is_terminal):
        runs.append(generate(candidate, prompt_file, max_new_tokens))
    originals: dict[str, Run] = {}
    for run in runs:
        originals.setdefault(run.candidate.device, run)

    for run in runs:
        console.print(Panel(escape(run.text), title=run.candidate.title, title_align="left"))
    table = Table("", "decode\ntokens/s", "prefill\ntokens/s", "load\ns", "peak memory\nMB", "greedy tokens")
    for run in runs:
        original = originals[run.candidate.device]
        table.add_row(
            run.candidate.title,
            f"{run.decode:.1f} ({run.decode / original.decode:.2f}×)",
            f"{run.prefill:.0f} ({run.prefill / original.prefill:.2f}×)",
            f"{run.load:.1f}",
            f"{run.peak_memory / 1e6:.0f}",
            "—" if run is original else verdict(run.tokens, original.tokens),
        )
    console.print(f"prompt of {runs[0].prompt_tokens} tokens, onnxruntime {runs[0].onnxruntime}")
    console.print(table)
    return all(run.tokens == originals[run.candidate.device].tokens for run in runs if run.candidate.exact)


def verdict(tokens: list[int], original: list[int]) -> str:
    if tokens == original:
        return f"identical ({len(tokens)})"
    same = 0
    while same < min(len(tokens), len(original)) and tokens[same] == original[same]:
        same += 1
    return f"differ after {same} of {len(original)}"
