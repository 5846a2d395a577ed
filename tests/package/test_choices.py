"""benchmarks/common/choices.py: a table with another choice in one place."""

from __future__ import annotations

import json
import sys

import pytest

from fdpp_ort.library import load_table
from fdpp_ort.tuning import AttentionShape, Product
from fdpp_ort.tuning.measurements import Candidate

SHAPE = AttentionShape(40, 40, 128, "float16", "float16")
PRODUCT = Product(4096, 11008, "float16", "f16", "plain")
POINTS = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def choices(repository):
    sys.path.insert(0, str(repository / "benchmarks"))
    from common import choices

    yield choices
    sys.path.remove(str(repository / "benchmarks"))


@pytest.fixture(scope="module")
def table(repository) -> dict:
    return json.loads((repository / "plugins/dispatch/tables/nvidia_h200.json").read_text(encoding="utf-8"))


def is_read(table: dict, folder) -> None:
    """The library takes it for a table."""
    path = folder / "table.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    load_table(path)
    load_table("")


def test_spans(choices) -> None:
    found = [choices.Span.below(point, POINTS) for point in (1, 4, 8, 20)]
    assert found == [choices.Span(1, 1), choices.Span(3, 4), choices.Span(5, 8), choices.Span(9, 20)]


def test_attention(choices, table, tmp_path) -> None:
    before = json.dumps(table)
    other = Candidate.of("", "cuda_decode_hopper", {"cluster": 8, "pieces": 3})
    new = choices.with_attention(table, SHAPE, choices.Span(3, 4), choices.Span(1025, 4096), other)
    for batch in (1, 2, 3, 4, 5, 8, 64, 100):
        for context in (1, 128, 1024, 1025, 4096, 4097, 99999):
            choice = choices.attention_choice(new, SHAPE, batch, context)
            if batch in (3, 4) and context in (1025, 4096):
                assert choice == other
            else:
                assert choice == choices.attention_choice(table, SHAPE, batch, context) != other
    assert json.dumps(table) == before
    is_read(new, tmp_path)


def test_product(choices, table, tmp_path) -> None:
    other = Candidate.of("flat", "cuda_flat_mma", {"rows": 32, "stages": 7})
    new = choices.with_product(table, PRODUCT, choices.Span(5, 8), other)
    for m in range(1, 130):
        choice, old = (choices.product_choice(t, PRODUCT, m) for t in (new, table))
        if 5 <= m <= 8:
            assert (choice.variant, choice.split) == (other.variant, other.split)
        else:
            assert choice == old
    is_read(new, tmp_path)
    # The same once more changes nothing, and back again gives the table that was.
    assert choices.with_product(new, PRODUCT, choices.Span(5, 8), other) == new
    was = choices.product_choice(table, PRODUCT, 5)
    assert was == choices.product_choice(table, PRODUCT, 8)
    assert choices.with_product(new, PRODUCT, choices.Span(5, 8), was) == table


def test_what_the_table_lacks(choices, table) -> None:
    assert choices.product_choice(table, Product(8, 16, "float16", "f16", "plain"), 1) is None
    assert choices.attention_choice(table, AttentionShape(3, 3, 8, "float16", "float16"), 1, 1) is None
