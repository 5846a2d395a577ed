"""OUT: built in a folder beside it and renamed at the end, so that it appears complete or not at all.

That folder is locked as long as its process lives; one that is not was left behind by a process that was killed.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ExportError
from .report import is_export

_OLD = ".old"  # ends the name of an earlier OUT, while the new one takes its place


def prepare_destination(destination: Path, overwrite: bool) -> None:
    """Removes what killed exports to `destination` have left beside it, but an earlier OUT that one of them had moved
    away becomes OUT again. Raises ExportError if `destination` may not be written."""
    left = _leftovers(destination)
    if left is not None:
        for folder in left:
            if folder.name.endswith(_OLD) and not os.path.lexists(destination):
                folder.rename(destination)
            else:
                shutil.rmtree(folder, ignore_errors=True)
    check_destination(destination, overwrite)


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
        lock = None
        try:
            stage.mkdir()
            lock = _locked(stage)
            yield stage
            check_destination(destination, overwrite)
            _publish(stage, destination)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            if lock is not None:
                os.close(lock)
    except OSError as error:
        # NumPy's writer counts items and names no cause.
        cause = error if error.errno is not None else f"{error} (is the disk full?)"
        raise ExportError(f"cannot write {destination}: {cause}; nothing was left behind") from error


def _publish(stage: Path, destination: Path) -> None:
    if not destination.exists():
        stage.rename(destination)
        return
    old = _beside(destination, _OLD)
    destination.rename(old)
    try:
        stage.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(destination: Path, suffix: str = "") -> Path:
    return destination.absolute().parent / f".{destination.name}.{secrets.token_hex(4)}{suffix}"


def _leftovers(destination: Path) -> list[Path] | None:
    """The folders of killed exports to `destination`; None: there may be one that goes on."""
    name = re.compile(rf"\.{re.escape(destination.name)}\.[0-9a-f]{{8}}({re.escape(_OLD)})?")
    found = []
    try:
        for folder in destination.absolute().parent.iterdir():
            if name.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                lock = _locked(folder)
                if lock is None:
                    return None
                os.close(lock)
                found.append(folder)
    except OSError:
        return None  # what cannot be looked at stays; check_destination says what is wrong
    return found


def _locked(folder: Path) -> int | None:
    """A descriptor that holds `folder`'s lock until it is closed; None: another process has it, or there are no
    locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
