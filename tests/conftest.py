"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import pathlib

import pytest


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the source tree."""
    return pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def unforced():
    """Leaves no forced variant behind."""
    from fdpp_ort import _core

    yield
    for spec in _core.op_specs():
        _core.force_variant(spec["name"], None)
