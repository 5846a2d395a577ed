"""Where and with what a benchmark ran: the head of every result file."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ONNXRUNTIMES = {"onnxruntime", "onnxruntime-gpu"}  # one module: where both are installed, the path decides


def _output(*command: str, folder: Path | None = None) -> str | None:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if len(found.keys() & _ONNXRUNTIMES) > 1:
        import onnxruntime

        found["onnxruntime that is imported"] = onnxruntime.__version__
    return found


def _bundled_commit(checkout: Path) -> str | None:
    """What `make gpu-bundle` was run at. On a machine that got a copy of the tree, history is missing or old."""
    file = checkout / "gpu-bundle" / "COMMIT"
    return file.read_text(encoding="ascii").strip() if file.is_file() else None


def describe(packages: tuple[str, ...], checkout: Path | None = None) -> dict[str, object]:
    """Date, command, CPU, GPU with driver, and versions of those of `packages` that are installed; of the source tree
    `checkout` the commit ("dirty": files differ from it) and the commit of the bundle of GPU kernels. None where the
    machine does not say."""
    here = f"{checkout}/" if checkout else ""
    described = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *(word.replace(here, "", 1) for word in sys.argv)]),
    }
    if checkout is not None:
        commit = _output("git", "rev-parse", "HEAD", folder=checkout)
        changes = _output("git", "status", "--porcelain", folder=checkout) if commit else None
        described |= {
            "commit": commit,
            "dirty": None if changes is None else changes != "",
            "gpu_bundle": _bundled_commit(checkout),
        }
    return {
        **described,
        "cpu": _cpu_name(),
        "cpu_threads": len(os.sched_getaffinity(0)),
        "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "versions": _versions(packages),
    }
