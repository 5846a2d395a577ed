"""What fdpp-export makes of damaged models; a program, since a bad model may hang a process or end it.

    python damaged_export.py FOLDER FIRST LAST

damages copies of the model FOLDER by the seeds FIRST to LAST - 1 and prints each seed's outcome, a line of JSON.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import random
import resource
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from damages import DAMAGES

import fdpp_ort
from fdpp_ort.cli import export as command

_SECONDS = 60  # of one export, which takes less than one
_HUGE = 1e18  # results of damaged weights: what is larger overflows here and there
_MEMORY = 16 << 30  # addresses: numbers in a damaged graph may ask for any amount


@dataclass(frozen=True)
class Outcome:
    """status, error: of fdpp-export. differs: what is wrong with an export; compared: it gives the same results."""

    name: str
    status: int
    error: str = ""
    differs: str = ""
    compared: bool = False


def attempt(base: Path, seed: int, folder: Path) -> Outcome:
    """Damages a copy of the folder `base` by `seed`, exports it and runs both graphs where that is possible.

    folder: a new one, for the copy and the export."""
    damage = DAMAGES[seed % len(DAMAGES)]
    name = f"{base.name}, {damage.__name__}, seed {seed}"
    source, out = folder / "in", folder / "out"
    shutil.copytree(base, source)
    damage(source, random.Random(seed))
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        status = command.main([str(source), str(out), "--max-length", "64"])
    if status != 0:
        return Outcome(name, status, error.getvalue())
    try:
        original = session(source / "model.onnx")
    except Exception as failure:  # of ONNX Runtime's many kinds
        return Outcome(name, status, differs=f"the damaged model does not load: {failure}")
    try:
        wanted = run(original)
    except Exception:
        return Outcome(name, status)  # nothing to compare with
    if not all(np.all(np.abs(values) < _HUGE) for values in wanted):
        return Outcome(name, status)
    try:
        for want, got in zip(wanted, run(session(out / "model.onnx")), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    except Exception as failure:
        return Outcome(name, status, differs=str(failure))
    return Outcome(name, status, compared=True)


def session(path: Path) -> onnxruntime.InferenceSession:
    """With our ops."""
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession) -> list[np.ndarray]:
    """All outputs of a graph: of a prompt of one row, three tokens and single ones."""
    random, results, total = np.random.default_rng(0), [], 0
    outputs = [item.name for item in session.get_outputs()]
    inputs = {item.name: item.shape for item in session.get_inputs()}
    feeds = {n: np.zeros((1, shape[1], 0, shape[3]), np.float32) for n, shape in inputs.items() if len(shape) == 4}
    for tokens in (5, 3, 1, 1):
        total += tokens
        feeds |= {"input_ids": random.integers(0, 32, (1, tokens)), "attention_mask": np.ones((1, total), np.int64)}
        results += session.run(outputs, {name: value for name, value in feeds.items() if name in inputs})
        given = dict(zip(outputs, results[-len(outputs) :], strict=True))
        feeds |= {f"past{name.removeprefix('present')}": value for name, value in given.items() if "present" in name}
    return results


def main(base: Path, first: int, last: int) -> None:
    """Ends the process, with a traceback, if one export hangs."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    onnxruntime.set_default_logger_severity(4)
    for seed in range(first, last):
        faulthandler.dump_traceback_later(_SECONDS, exit=True)
        folder = base.parent / f"{base.name}.{seed}"
        print(json.dumps(asdict(attempt(base, seed, folder))), flush=True)
        shutil.rmtree(folder)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
