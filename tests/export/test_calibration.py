"""Calibration of the unified softmax: phi from the scores of a text, and what becomes of each layer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tokenizers
from onnx import helper, numpy_helper
from small_models import (
    FLOAT16,
    HEAD_SIZE,
    HEADS,
    KV_HEADS,
    POSITIONS,
    VOCABULARY,
    attention_nodes,
    decoder,
    save_folder,
)

import fdpp_ort
from fdpp_ort.cli.export import main
from fdpp_ort.export import ExportError, ExportReport, export_model
from fdpp_ort.export.calibrate import calibration, read_tokens
from fdpp_ort.export.calibrate.interval import KERNELS, Kernels, best_phi, share_leaving
from fdpp_ort.export.calibrate.rows import _quantiles

TOKENS = 4 * POSITIONS


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.npz"
    np.savez(path, np.random.default_rng(3).integers(0, VOCABULARY, TOKENS))
    return path


def scaled_scores(proto: onnx.ModelProto, factor: float, layer: int | None = None) -> onnx.ModelProto:
    """Multiplies the scores of one layer, or of all."""
    for index, node in enumerate(attention_nodes(proto)):
        if layer in (None, index):
            scale = next(attribute for attribute in node.attribute if attribute.name == "scale")
            scale.f *= factor
    return proto


def export(proto: onnx.ModelProto, tmp_path: Path, library: str, tokens: Path, **options) -> ExportReport:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    folder = tmp_path / "in"
    if not folder.exists():
        save_folder(proto, folder, genai=False)
        (folder / "config.json").write_text(json.dumps({"max_position_embeddings": POSITIONS}))
    return export_model(folder, tmp_path / "out", library=library, calibrate=tokens, **options)


# ---- phi


def rows(*pairs: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array(values, np.float32) for values in zip(*pairs, strict=True))


EIGHT = Kernels(-8, 8, 64)


@pytest.mark.parametrize(
    ("seen", "phi", "leaving"),
    [
        ([(-1, 1)], 0, 0),
        ([(2, 2), (4, 4)], 3, 0),  # as far from both ends
        ([(-10, 4)], -3, 0),
        ([(0, 0), (1, 1), (2, 2), (50, 50)], 1, 0.25),  # the one that is far off leaves
        ([(-20, 20), (1, 3)], 2, 0.5),  # one is wider than the interval
        ([(-20, 20)], 0, 1),
    ],
)
def test_phi_keeps_most_rows(seen: list, phi: float, leaving: float) -> None:
    low, high = rows(*seen)
    assert best_phi(low, high, EIGHT) == pytest.approx(phi)
    assert share_leaving(low, high, best_phi(low, high, EIGHT), EIGHT) == leaving


@pytest.mark.parametrize("edge", [(-8, 0), (0, 8)])
def test_the_interval_does_not_hold_its_ends(edge: tuple[float, float]) -> None:
    assert share_leaving(*rows(edge), 0, EIGHT) == 1


# ---- against the kernels' own count


def interleaved(proto: onnx.ModelProto) -> None:
    for node in attention_nodes(proto):
        for attribute in node.attribute:
            if attribute.name == "rotary_interleaved":
                attribute.i = 1


def window(proto: onnx.ModelProto) -> None:
    for node in attention_nodes(proto):
        for attribute in node.attribute:
            if attribute.name == "local_window_size":
                attribute.i = 7


def softcap(proto: onnx.ModelProto) -> None:
    for node in attention_nodes(proto):
        for attribute in node.attribute:
            if attribute.name == "softcap":
                attribute.f = 40


def norms(proto: onnx.ModelProto) -> None:
    for name in ("q_norm", "k_norm"):
        values = np.random.default_rng(len(name)).uniform(0.5, 2, HEAD_SIZE).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values * (1 + (name == "q_norm")), name))
    for node in attention_nodes(proto):
        node.input.extend(["", "", "q_norm", "k_norm"])


def bias(proto: onnx.ModelProto) -> None:
    values = np.random.default_rng(1).standard_normal((1, HEADS, POSITIONS, POSITIONS)).astype(np.float32) * 9
    values[:, :, 20:, 3:19] = -np.inf
    proto.graph.initializer.append(numpy_helper.from_array(values, "bias"))
    for node in attention_nodes(proto):
        node.input[10] = "bias"


def left_phi(node: str) -> int:
    return sum(plan["out_of_range_rows"] for plan in fdpp_ort.last_plan() if plan["node"] == node)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("edit", "factor"),
    [(None, 800), (interleaved, 800), (window, 2000), (softcap, 1500), (norms, 8), (bias, 500)],
    ids=lambda item: getattr(item, "__name__", str(item)),
)
def test_kernels_count_the_rows_that_were_foreseen(
    edit, factor: float, packed: bool, tokens: Path, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of at most 64 tokens are one look of the CPU's kernels: then what is foreseen is exact."""
    proto = scaled_scores(decoder(packed=packed), factor)
    if edit is not None:
        edit(proto)
    monkeypatch.setattr(calibration, "LARGEST_SHARE", 1)
    report = export(proto, tmp_path, library, tokens, verify=edit not in (norms, bias))
    (layer,) = report.calibration.layers
    assert layer.unified and 0.01 < layer.leaving < 0.9, layer.leaving

    before = left_phi(layer.node)
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", options)
    past = {f"past.0.{part}": np.zeros((1, KV_HEADS, 0, HEAD_SIZE), np.float32) for part in "kv"}
    for row in read_tokens(tokens, tmp_path).reshape(-1, 1, POSITIONS):
        session.run(None, {"input_ids": row, "attention_mask": np.ones_like(row), **past})
    assert left_phi(layer.node) - before == round(layer.leaving * TOKENS * HEADS)


def test_extremes_and_quantiles(tokens: Path, tmp_path: Path, library: str) -> None:
    (layer,) = export(decoder(), tmp_path, library, tokens).calibration.layers
    (wide,) = export(scaled_scores(decoder(), 1), tmp_path, library, tokens, softmax="online").calibration.layers
    assert wide == layer  # the mode before changes nothing
    assert len(layer.heads) == HEADS
    for head in layer.heads:
        assert -20 < head.minimum <= head.low < 0 < head.high <= head.maximum < 20
        assert head.low < head.minimum + 1 and head.high > head.maximum - 1 and head.leaving == 0


def test_quantiles_leave_out_few() -> None:
    def quantiles(scores: list[float], counts: list[int]) -> tuple[float, float]:
        histogram = np.zeros(2 * 1024 * 8 + 1, np.int64)
        bins = np.clip((np.array(scores) + 1024) * 8, 0, len(histogram) - 1).astype(int)
        np.add.at(histogram, bins, counts)
        return _quantiles(histogram, (min(scores), max(scores)))

    assert quantiles([-90, 1, 2, 90], [1, 50000, 50000, 1]) == (1, 2.125)
    assert quantiles([-90, 1, 2, 90], [100, 50000, 50000, 100]) == (-90, 90)
    assert quantiles([-3e5, 0, 4e5], [1000, 1, 1000]) == (-3e5, 4e5)  # beyond the histogram


# ---- what becomes of the graph


def settings(path: Path) -> list[dict]:
    return [
        {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        for node in attention_nodes(onnx.load(path))
    ]


def test_layers_for_which_it_is_worth_it(tokens: Path, tmp_path: Path, library: str) -> None:
    """The middle one's scores go to hundreds, as OPT's do."""
    report = export(scaled_scores(decoder(layers=3), 5000, layer=1), tmp_path, library, tokens)
    assert report.verification.status == "passed"
    found = report.calibration
    assert [layer.unified for layer in found.layers] == [True, False, True]
    wide = found.layers[1]
    assert wide.leaving > 0.3 and all(head.high > 100 and head.low < -100 for head in wide.heads)
    assert found.leaving == 0 and (found.tokens, found.row_tokens) == (TOKENS, POSITIONS)

    graph = onnx.load(tmp_path / "out" / "model.onnx")
    unified, lazy, _ = settings(tmp_path / "out" / "model.onnx")
    assert unified["softmax_mode"] == b"unified" and lazy["softmax_mode"] == b"lazy"
    assert (unified["phi_lower"], unified["phi_upper"]) == (-20, 20)
    assert "phi_lower" not in lazy
    nodes, weights = attention_nodes(graph), {tensor.name: tensor for tensor in graph.graph.initializer}
    assert len(nodes[0].input) == 17 and len(nodes[1].input) < 17
    phi = numpy_helper.to_array(weights[nodes[0].input[16]])
    np.testing.assert_allclose(phi, [head.phi for head in found.layers[0].heads], rtol=1e-6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")) == []


def test_worth_it_nowhere(tokens: Path, tmp_path: Path, library: str) -> None:
    report = export(scaled_scores(decoder(), 5000), tmp_path, library, tokens, softmax="online")
    assert report.calibration.unified == [] and report.calibration.leaving is None
    assert settings(tmp_path / "out" / "model.onnx")[0]["softmax_mode"] == b"online"


def test_for_tensorrt(tokens: Path, tmp_path: Path, library: str) -> None:
    report = export(decoder(layers=2), tmp_path, library, tokens, target="tensorrt")
    assert len(report.calibration.unified) == 2 and report.verification.status == "passed"
    for node in settings(tmp_path / "out" / "model.onnx"):
        assert node["softmax_mode"] == b"unified" and node["inputs"].endswith(b",phi")


def test_widths_are_the_kernels(tokens: Path) -> None:
    """float16 weights go from 2^-10 to 2^15."""
    assert np.exp(KERNELS["float16"].lower) == pytest.approx(2**-10)
    assert np.exp(KERNELS["float16"].upper) == pytest.approx(2**15)
    assert KERNELS["float32"] == Kernels(-20, 20, 64)


# ---- texts


def test_a_text(tmp_path: Path, library: str, capsys) -> None:
    folder = save_folder(decoder(), tmp_path / "in")
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % VOCABULARY}" for i in range(TOKENS)))
    np.testing.assert_array_equal(read_tokens(text, folder), np.arange(TOKENS) % VOCABULARY)

    assert main([str(folder), str(tmp_path / "out"), "--calibrate", str(text), "--max-length", str(POSITIONS)]) == 0
    assert "unified softmax in 1 of 1 layers; 0.000% of their query rows leave phi" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "fdpp_report.json").read_text())["calibration"]
    assert written["text"] == str(text) and len(written["layers"][0]["heads"]) == HEADS


def not_there(folder: Path) -> Path:
    return folder / "none.txt"


def too_short(folder: Path) -> Path:
    np.savez(folder / "short.npz", np.zeros(255, np.int32))
    return folder / "short.npz"


def fractions(folder: Path) -> Path:
    np.savez(folder / "fractions.npz", np.zeros(TOKENS))
    return folder / "fractions.npz"


def two_arrays(folder: Path) -> Path:
    np.savez(folder / "two.npz", a=np.zeros(TOKENS, int), b=np.zeros(TOKENS, int))
    return folder / "two.npz"


def no_arrays(folder: Path) -> Path:
    (folder / "text.npz").write_text("a text")
    return folder / "text.npz"


def no_tokenizer(folder: Path) -> Path:
    (folder / "text.txt").write_text("a text")
    return folder / "text.txt"


def beyond_the_vocabulary(folder: Path) -> Path:
    np.savez(folder / "beyond.npz", np.full(TOKENS, VOCABULARY))
    return folder / "beyond.npz"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (not_there, "cannot be read"),
        (too_short, "255 tokens are too few .* at least 256"),
        (fractions, r"arr_0 is float64 \[256\], expected integers"),
        (two_arrays, "expected one array of token ids, found a, b"),
        (no_arrays, "not an .npz file"),
        (no_tokenizer, "the tokenizer is missing; give token ids"),
        (beyond_the_vocabulary, "fails on tokens of .*beyond.npz, which lie between 96 and 96"),
    ],
)
def test_a_text_that_cannot_be_used(make, message: str, tmp_path: Path, library: str) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    with pytest.raises(ExportError, match=message):
        export(decoder(), tmp_path, library, make(texts))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "texts"]


def test_scores_that_are_no_numbers(tokens: Path, tmp_path: Path, library: str) -> None:
    proto = decoder()
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "layers.0.qkv.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportError, match="scores of layers.0.attention are not numbers"):
        export(proto, tmp_path, library, tokens)


def test_float16_needs_a_gpu(tokens: Path, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ExportError, match="calibration is not possible: a float16 graph needs .* CUDA provider"):
        export(decoder(dtype=FLOAT16), tmp_path, library, tokens)


def test_needs_the_library(model_folder: Path, tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="needs the op library"):
        export_model(model_folder, tmp_path / "out", target="tensorrt", verify=False, calibrate=tokens)
