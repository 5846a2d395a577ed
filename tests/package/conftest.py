"""Model folders and commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from random_decoder import make
from tiny_decoder import write_folder


@pytest.fixture(scope="session")
def original_folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("original") / "model", ours=False)


@pytest.fixture(scope="session")
def fdpp_folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("fdpp") / "model", ours=True)


@pytest.fixture(scope="session")
def benchmarks(repository) -> Path:
    return repository / "benchmarks"


@pytest.fixture(scope="session")
def random_decoders(benchmarks):
    """The modules that make decoders with random weights."""
    sys.path.insert(0, str(benchmarks))
    try:
        from common import decoders, shapes

        return decoders, shapes
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="session")
def llama(random_decoders, tmp_path_factory) -> tuple[Path, Path]:
    """The original and the exported folder, float32."""
    return make(random_decoders, tmp_path_factory.mktemp("llama"), "tiny-llama", "f32")[:2]


@pytest.fixture(scope="session")
def opt(random_decoders, tmp_path_factory) -> tuple[Path, Path]:
    """As llama; its graph has position_ids."""
    return make(random_decoders, tmp_path_factory.mktemp("opt"), "tiny-opt", "f32")[:2]


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
