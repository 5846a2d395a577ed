"""How fast fdpp-export streams the weights of a large model, beside a plain copy of its files, and how much memory it
takes.

Makes a float16 graph of random numbers with the layers of Llama2-7B in a new folder, which is removed afterwards, and
then in turns copies it and exports it, each in a process of its own: seconds from start to end with all data on the
disk (sync), none of it in the page cache beforehand, and the peak of the resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machine
from common.decoders import write_graph
from common.random_weights import WEIGHTS_FILE, write_weights
from common.shapes import Shape, layout
from onnx import TensorProto

CHILD = """
import re, sys, time
from fdpp_ort import library_path
from fdpp_ort.export import export_model
start = time.perf_counter()
export_model(sys.argv[1], sys.argv[2], weights=sys.argv[3], verify=False, library=library_path())
print(time.perf_counter() - start, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def forget(folder: Path) -> None:
    """All of the files in `folder` to the disk and out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flush(folder: Path) -> float:
    """Seconds until the files in `folder` are on the disk."""
    start = time.perf_counter()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


@contextmanager
def processor() -> Iterator[dict[str, float]]:
    """Seconds of processor time that the processes of the block take, once it has ended."""
    before, used = resource.getrusage(resource.RUSAGE_CHILDREN), {}
    yield used
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def copied(source: Path, target: Path) -> dict[str, float]:
    start = time.perf_counter()
    with processor() as used:
        subprocess.run(["cp", "-r", source, target], check=True)
    return {"seconds": time.perf_counter() - start + flush(target), **used}


def exported(source: Path, target: Path, weights: str) -> dict[str, float]:
    command = [sys.executable, "-c", CHILD, source, target, weights]
    with processor() as used:
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {"seconds": float(words[0]) + flush(target), "peak_rss_bytes": 1024 * int(words[1]), **used}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12, help="of 405 MB each")
    parser.add_argument("--folder", type=Path, help="where to make the files (default: the system's temporary folder)")
    parser.add_argument("--weights", nargs="+", default=["keep", "int4"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    results = {"copy": [], **{weights: [] for weights in options.weights}}
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        source, target = Path(work) / "in", Path(work) / "out"
        source.mkdir()
        shape = Shape(layers=options.layers)
        write_weights(source, layout(shape, TensorProto.FLOAT16))
        write_graph(source / "model.onnx", shape, "genai")
        size = (source / WEIGHTS_FILE).stat().st_size
        for _ in range(options.rounds):
            for name, runs in results.items():
                forget(source)
                runs.append(copied(source, target) if name == "copy" else exported(source, target, name))
                print(name, runs[-1], flush=True)
                shutil.rmtree(target)
    best = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()}
    report = machine.describe(("onnx", "onnx-ir", "onnxruntime", "numpy")) | {
        "weight_bytes": size,
        "layers": options.layers,
        "runs": results,
        "median_seconds": best,
        "speed_beside_copy": {name: best["copy"] / seconds for name, seconds in best.items()},
    }
    print(json.dumps(report["speed_beside_copy"]))
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
