"""Exports that are killed half-way, and run again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_models import HIDDEN, decoder, save_folder

from fdpp_ort.export import ExportError, export_model

EXPORT = """
import sys
from fdpp_ort.export import export_model
export_model(sys.argv[1], sys.argv[2], weights=sys.argv[4], verify=False, library=sys.argv[3], overwrite=True)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digests(folder: Path) -> dict[str, str]:
    """Of all files but the report and its page, which name its paths."""
    files = [path for path in folder.iterdir() if path.suffix not in (".json", ".html")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(source: Path, out: Path, stand_in: Path, weights: str = "keep") -> subprocess.Popen:
    command = [sys.executable, "-c", EXPORT, source, out, stand_in, weights]
    return subprocess.Popen(command, stderr=subprocess.PIPE, cwd=source.parent)


def written(parent: Path, before: set[Path] = frozenset()) -> int:
    """Bytes of weights in hidden folders of `parent`, those in `before` left out. They may go while they are
    counted."""
    total = 0
    for stage in set(parent.glob(".out.*")) - before:
        for folder, _, files in os.walk(stage):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(os.path.join(folder, name)).st_blocks * 512 * name.endswith(".data")
    return total


def kill_when_written(source: Path, parent: Path, stand_in: Path, size: int, weights: str = "keep") -> None:
    """Exports to `parent` / out, and kills that once `size` bytes of weights are written."""
    before = set(parent.glob(".out.*"))
    process = start(source, parent / "out", stand_in, weights)
    deadline = time.monotonic() + 60
    while written(parent, before) < size:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 MB of weights."""
    return save_folder(decoder(layers=30, hidden=64 * HIDDEN, vocabulary=512), tmp_path_factory.mktemp("large") / "in")


def test_killed_and_run_again(large: Path, stand_in: Path, tmp_path: Path) -> None:
    out, clean = tmp_path / "out", tmp_path / "clean"
    export_model(large, clean, weights="int8", verify=False, library=stand_in)
    for size in (1, 10_000_000):
        kill_when_written(large, tmp_path, stand_in, size, "int8")
        assert not out.exists() and written(tmp_path) >= size
    assert start(large, out, stand_in, "int8").wait() == 0
    assert names(tmp_path) == ["clean", "libfdpp_ort.so", "out"]
    assert digests(out) == digests(clean)


def test_killed_while_replacing_an_export(large: Path, stand_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(large, out, weights="int8", verify=False, library=stand_in)
    before = digests(out)
    kill_when_written(large, tmp_path, stand_in, 10_000_000)
    assert digests(out) == before
    assert start(large, out, stand_in).wait() == 0
    assert names(tmp_path) == ["libfdpp_ort.so", "out"] and digests(out) != before


def test_killed_between_the_renames(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    """The earlier OUT has gone aside, the new one has not come yet."""
    out, old = tmp_path / "out", tmp_path / ".out.0123abcd.old"
    export_model(model_folder, out, verify=False, library=stand_in)
    before = digests(out)
    out.rename(old)
    (tmp_path / ".out.4567cdef").mkdir()
    with pytest.raises(ExportError, match="out exists; --overwrite replaces it"):
        export_model(model_folder, out, verify=False, library=stand_in)
    assert digests(out) == before and names(tmp_path) == ["in", "libfdpp_ort.so", "out"]


def test_what_another_export_is_writing_stays(large: Path, stand_in: Path, tmp_path: Path) -> None:
    process = start(large, tmp_path / "out", stand_in)
    deadline = time.monotonic() + 60
    while not written(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline
    process.send_signal(signal.SIGSTOP)
    try:
        stage = next(tmp_path.glob(".out.*"))
        export_model(large, tmp_path / "out", verify=False, library=stand_in)
        assert stage.is_dir()
    finally:
        process.send_signal(signal.SIGCONT)
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("name", [".out.0123abcde", ".out.0123abcg", ".outer.0123abcd", ".out.0123abcd.new"])
def test_other_hidden_folders_stay(name: str, model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    export_model(model_folder, tmp_path / "out", verify=False, library=stand_in)
    assert os.path.isdir(tmp_path / name)
