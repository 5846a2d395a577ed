"""500 damaged models: fdpp-export says what is wrong, or writes a model that does what the damaged one does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import damaged_export
import onnx
import pytest
import small_models
from small_models import save_folder
from spelled_out_models import around, decoder

_SEEDS = 100
_OUTPUTS, _CACHED = "merged, present_key, present_value", "past_key, past_value"


def _quantised() -> onnx.ModelProto:
    model = small_models.decoder(packed=False, tied=False)
    small_models.with_gates(model, 0)
    for part in "qkvo":
        small_models.quantise(model, f"layers.0.{part}", zero_points=part == "o")
    return model


def _with_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Under the name by which verification knows the output."""
    model.graph.node[-1].output[0] = model.graph.output[0].name = "logits"
    return model


BASES = {
    "builder": small_models.decoder,
    "builder, int4": _quantised,
    "standard ops": lambda: _with_logits(decoder()),
    "Attention": lambda: _with_logits(
        around(f"{_OUTPUTS} = Attention<q_num_heads = 4, kv_num_heads = 2>(q3, k3, v3, mask, {_CACHED})", 4)
    ),
    "MultiHeadAttention": lambda: _with_logits(
        around(f"{_OUTPUTS} = com.microsoft.MultiHeadAttention<num_heads = 2>(q3, k3, v3, , , mask, {_CACHED})", 2)
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future]]:
    """What the program damaged_export says of each base, two at a time."""
    folder = tmp_path_factory.mktemp("damaged")
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(_export, save_folder(make(), folder / name, genai=False)) for name, make in BASES.items()
        }


def _export(base: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, damaged_export.__file__, str(base), "0", str(_SEEDS)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", BASES)
def test_an_error_or_the_same(name: str, outcomes: dict[str, Future]) -> None:
    result = outcomes[name].result()
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, f"{name}, after {len(found)} models: {result.stderr}"
    assert len(found) == _SEEDS
    for outcome in found:
        assert not outcome["differs"], outcome
        if outcome["status"]:
            *_, last = re.split(r"^(?=fdpp-export)", outcome["error"], flags=re.MULTILINE)
            assert outcome["status"] in (1, 2) and last.startswith("fdpp-export: error: "), outcome
            assert "Traceback" not in outcome["error"], outcome
    # Most damages leave nothing to export.
    assert sum(outcome["compared"] for outcome in found) >= _SEEDS // 20
