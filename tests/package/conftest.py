"""Model folders and commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_decoder import write_folder


@pytest.fixture(scope="session")
def original_folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("original") / "model", ours=False)


@pytest.fixture(scope="session")
def fdpp_folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("fdpp") / "model", ours=True)


@pytest.fixture
def command(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """command(tool, *arguments, path=...): runs fdpp_ort.cli.<tool> in a process of its own, with the folders of `path`
    first on Python's path."""

    def run(tool: str, *arguments: object, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess:
        inherited = os.environ.get("PYTHONPATH")
        python_path = os.pathsep.join([*map(str, path), *([inherited] if inherited else [])])
        return subprocess.run(
            [sys.executable, "-m", f"fdpp_ort.cli.{tool}", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": python_path, "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )

    return run
