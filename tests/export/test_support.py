"""The README's table of what exports well: the same pairs that the tests verify."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import support
import test_builder_graphs
import test_lengths_as_inputs
import test_static_caches
import test_torch_dialects

_OTHERS = (test_builder_graphs, test_lengths_as_inputs, test_static_caches)
DECLARED = {*test_torch_dialects.GRAPHS, *(pair for tests in _OTHERS for pair in tests.PAIRS)}


def test_the_readme_has_the_pairs_of_the_tests() -> None:
    readme = support.README.read_text(encoding="utf-8")
    assert support.drawn(readme, DECLARED) == readme


_TESTS = """
import pytest

def test_passes(record_property):
    record_property("verified", "exporter, of one kind / Model 1")

def test_fails(record_property):
    record_property("verified", "other / Model 2")
    raise AssertionError

def test_is_skipped(record_property):
    record_property("verified", "other / Model 3")
    pytest.skip()

def test_says_nothing():
    pass
"""


def test_a_pair_counts_where_its_test_passed(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir=.", "--junitxml=results.xml", "test_some.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 2 passed, 1 skipped" in ran.stdout
    assert support.verified_pairs(tmp_path / "results.xml") == {("exporter, of one kind", "Model 1")}


def test_table() -> None:
    assert support.table({("b", "Two"), ("A", "one"), ("b", "one")}) == (
        "|  | A | b |\n| --- | :-: | :-: |\n| one | ✓ | ✓ |\n| Two |  | ✓ |\n"
    )
