"""Each rewrite beyond attention and products: counted, and switched off by its option, with the same results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch_models as models

from fdpp_ort.cli.export import main
from fdpp_ort.export import export_model

PACKED = "Q, K, V -> one product"  # where nothing stands between the products and attention
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's tracer

INTO_PRODUCTS = {
    "SimplifiedLayerNormalization -> FdppFlatGemm",
    "SkipSimplifiedLayerNormalization -> FdppFlatGemm",
    "Add -> FdppFlatGemm",
}
# By option what is then missing; of a model that has normalised heads and biases.
KINDS = {
    "gated": {"silu(gate) * up -> silu_mul"},
    "packed_qkv": {PACKED},
    "bias": {"Add of a bias -> FdppFlatGemm", PACKED},
    "head_norms": {"norms of heads -> FdppAttention", PACKED},
    "norms": {
        "RMS norm -> SimplifiedLayerNormalization",
        "RMS norm -> SkipSimplifiedLayerNormalization",
        "norms of heads -> FdppAttention",
        PACKED,
        *(kind for kind in INTO_PRODUCTS if "Normalization" in kind),
    },
    "norms_into_products": INTO_PRODUCTS,
}
# What is then done in its place.
INSTEAD = {"gated": {"silu -> FdppFlatGemm"}}
EXTRA = {
    "prefetch": "FdppFlatGemm -> with the next weight as a hint",
    "last_logits": "logits -> of the last token alone",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("switches") / "decoder.onnx"
    return models.to_onnx(models.model("Qwen3, biases"), path, opset=17, position_ids=True, dynamo=False)


def kinds(source: Path, out: Path, library: str, **options: bool) -> set[str]:
    report = export_model(source, out, library=library, max_length=128, **options)
    assert report.verification.status == "passed" and report.left == []
    assert all(phase.relative_error < 1e-5 for phase in report.verification.phases)
    return set(report.rewritten)


def test_what_is_done_unless_switched_off(source: Path, tmp_path: Path, library: str) -> None:
    usual = kinds(source, tmp_path / "usual", library)
    assert set().union(*KINDS.values()) <= usual and not usual & {*EXTRA.values()}
    for option, without in KINDS.items():
        assert kinds(source, tmp_path / option, library, **{option: False}) == usual - without | INSTEAD.get(
            option, set()
        )


@pytest.mark.parametrize("option", EXTRA)
def test_what_is_done_where_switched_on(option: str, source: Path, tmp_path: Path, library: str) -> None:
    assert EXTRA[option] in kinds(source, tmp_path / "out", library, **{option: True})


def test_from_the_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = [f"--no-{option.replace('_', '-')}" for option in KINDS]
    assert main([str(source), str(tmp_path / "out"), "--max-length", "128", "--no-verify", *without]) == 0
    printed = capsys.readouterr().out
    assert "GroupQueryAttention" in printed and not any(kind in printed for kind in set().union(*KINDS.values()))
