"""OUT: built in a folder beside it and renamed at the end, so that it appears complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ExportError
from .report import is_export


def check_destination(destination: Path, overwrite: bool) -> None:
    """Raises ExportError if `destination` may not be written."""
    if not destination.absolute().parent.is_dir():
        raise ExportError(f"{destination.absolute().parent}: no such folder; OUT is made inside an existing one")
    if not os.path.lexists(destination):
        return
    if destination.is_symlink() or not is_export(destination):
        raise ExportError(f"{destination} exists and was not written by fdpp-export; nothing was touched")
    if not overwrite:
        raise ExportError(f"{destination} exists; --overwrite replaces it")


@contextmanager
def staged(destination: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder that becomes `destination` when the block ends well and is removed when it does not.

    Raises ExportError if `destination` may not be written, and for any OSError of the block (a full disk).
    """
    check_destination(destination, overwrite)
    stage = _beside(destination)
    try:
        try:
            stage.mkdir()
            yield stage
            check_destination(destination, overwrite)
            _publish(stage, destination)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        # NumPy's writer counts items and names no cause.
        cause = error if error.errno is not None else f"{error} (is the disk full?)"
        raise ExportError(f"cannot write {destination}: {cause}; nothing was left behind") from error


def _publish(stage: Path, destination: Path) -> None:
    if not destination.exists():
        stage.rename(destination)
        return
    old = _beside(destination)
    destination.rename(old)
    try:
        stage.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(destination: Path) -> Path:
    return destination.absolute().parent / f".{destination.name}.{secrets.token_hex(4)}"
