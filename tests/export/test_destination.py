"""OUT appears complete or not at all, and nothing of others is touched."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from fdpp_ort.export import ExportError, export_model


def export(source: Path, stand_in: Path, **options) -> Path:
    out = source.parent / "out"
    export_model(source, out, verify=False, library=stand_in, **options)
    return out


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link", "dangling link"])
def test_what_is_not_ours_is_refused(kind: str, model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif "link" in kind:
        out.symlink_to(tmp_path / "gone" if "dangling" in kind else model_folder)
    else:
        out.mkdir()
        if kind == "folder":
            (out / "letter.txt").write_text("mine")
    before = names(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ExportError, match="out exists and was not written by fdpp-export; nothing was touched"):
            export(model_folder, stand_in, overwrite=overwrite)
    assert names(tmp_path) == before
    if kind == "folder":
        assert (out / "letter.txt").read_text() == "mine" and names(out) == ["letter.txt"]


def test_overwrite_replaces_an_export(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    out = export(model_folder, stand_in)
    (out / "added.txt").write_text("")
    with pytest.raises(ExportError, match="--overwrite replaces it"):
        export(model_folder, stand_in)
    assert (out / "added.txt").exists()
    export(model_folder, stand_in, overwrite=True)
    assert not (out / "added.txt").exists() and (out / "model.onnx").exists()
    assert names(tmp_path) == ["in", "libfdpp_ort.so", "out"]


def test_a_failed_overwrite_keeps_the_old_export(model_folder: Path, stand_in: Path, monkeypatch) -> None:
    out = export(model_folder, stand_in)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    _fill_disk(monkeypatch)
    with pytest.raises(ExportError, match="No space left on device"):
        export(model_folder, stand_in, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert names(out.parent) == ["in", "libfdpp_ort.so", "out"]


def test_parent_is_missing(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nowhere: no such folder"):
        export_model(model_folder, tmp_path / "nowhere" / "out", verify=False, library=stand_in)
    assert not (tmp_path / "nowhere").exists()


def test_full_disk(model_folder: Path, stand_in: Path, tmp_path: Path, monkeypatch) -> None:
    _fill_disk(monkeypatch)
    with pytest.raises(ExportError, match="cannot write .*out: .*No space left on device"):
        export(model_folder, stand_in)
    assert names(tmp_path) == ["in", "libfdpp_ort.so"]


def test_file_size_limit(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    """The kernel itself stops the writing of the weights half-way."""
    script = """
import resource, sys
from fdpp_ort.export import ExportError, export_model
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    export_model(sys.argv[1], sys.argv[2], verify=False, library=sys.argv[3])
except ExportError as error:
    print("refused:", error)
"""
    command = [sys.executable, "-c", script, str(model_folder), str(tmp_path / "out"), str(stand_in)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.startswith("refused: cannot write") and "File too large" in result.stdout
    assert names(tmp_path) == ["in", "libfdpp_ort.so"]


def test_weight_that_does_not_fit_leaves_nothing(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    data = model_folder / "model.onnx.data"
    weight = ir.load(model_folder / "model.onnx").graph.initializers["layers.0.o.weight"].const_value
    content = bytearray(data.read_bytes())
    content[weight.offset : weight.offset + 4] = b"\x00\x24\x74\x49"  # 1e6
    data.write_bytes(content)
    with pytest.raises(ExportError, match="weight layers.0.o.weight reaches 1e\\+06"):
        export(model_folder, stand_in, weights="f16")
    assert names(tmp_path) == ["in", "libfdpp_ort.so"]


def _fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_, **__) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ir, "save", write)
