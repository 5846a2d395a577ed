"""--cache: what the exported graph and genai_config.json say of caches, and that one graph does both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import HEAD_SIZE, KV_HEADS, decoder, save_folder
from spelled_out_models import decoder as spelled_out
from spelled_out_models import with_logits, with_room, written

import fdpp_ort
from fdpp_ort.cli.export import main
from fdpp_ort.export import ExportError, ExportReport, export_model

ROOM = 24


def slots(graph: Path) -> tuple[set[str | int], set[str | int]]:
    """Sizes of the caches of `graph`: of past, of present."""
    proto = onnx.load(graph, load_external_data=False).graph
    found = {}
    for side in ("past", "present"):
        shapes = [value.type.tensor_type.shape.dim for value in (*proto.input, *proto.output) if side in value.name]
        found[side] = {shape[2].dim_param or shape[2].dim_value for shape in shapes}
        assert all(shape[3].dim_value in (8, HEAD_SIZE) for shape in shapes)
    return found["past"], found["present"]


def export(proto: onnx.ModelProto, tmp_path: Path, library: str, cache: str | None) -> ExportReport:
    return export_model(save_folder(proto, tmp_path / "in"), tmp_path / "out", library=library, cache=cache)


SIZES = {
    "in-place": ({"capacity"}, {"capacity"}),
    "concat": ({"past_sequence_length"}, {"total_sequence_length"}),
    None: ({"past"}, {"t"}),
}


@pytest.mark.parametrize("cache", SIZES)
def test_graph_of_the_builder(cache: str | None, tmp_path: Path, library: str) -> None:
    report = export(decoder(layers=2), tmp_path, library, cache)
    assert report.verification.status == "passed"
    assert all(phase.relative_error < 1e-5 for phase in report.verification.phases)
    assert slots(tmp_path / "out" / "model.onnx") == SIZES[cache]
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    shared = {"in-place": {"past_present_share_buffer": True}, "concat": {"past_present_share_buffer": False}}
    assert config["search"] == {"max_length": 64} | shared.get(cache, {})
    kinds = {kind: count for kind, count in report.rewritten.items() if kind.startswith("cache")}
    assert kinds == ({f"cache -> {cache}": 4} if cache else {})


@pytest.mark.parametrize("cache", ["in-place", "concat"])
def test_growing_caches_of_spelled_out_attention(cache: str, tmp_path: Path, library: str) -> None:
    """Whatever it says, the graph runs with a buffer that past and present share, and with caches that grow."""
    onnx.save(with_logits(spelled_out()), tmp_path / "in.onnx")
    report = export_model(tmp_path / "in.onnx", tmp_path / "out", library=library, max_length=64, cache=cache)
    assert report.verification.status == "passed"
    exported = tmp_path / "out" / "model.onnx"
    assert slots(exported) == SIZES[cache]
    want, grown, shared = run(tmp_path / "in.onnx"), run(exported), run_in_place(exported)
    for step, (a, b, c) in enumerate(zip(want, grown, shared, strict=True)):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5, err_msg=f"step {step}")
        np.testing.assert_allclose(c, a, rtol=1e-4, atol=1e-5, err_msg=f"step {step}")


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def steps() -> list[dict[str, np.ndarray]]:
    random, mask = np.random.default_rng(0), np.ones((2, 0), np.int64)
    found = []
    for tokens in (5, 3, 1, 1):
        mask = np.concatenate([mask, np.ones((2, tokens), np.int64)], axis=1)
        mask[1, :2] = 0
        found.append({"input_ids": random.integers(0, 32, (2, tokens)), "attention_mask": mask})
    return found


def real(logits: np.ndarray, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Without padding."""
    return logits[feeds["attention_mask"][:, -logits.shape[1] :].astype(bool)]


def run(path: Path) -> list[np.ndarray]:
    graph, results = session(path), []
    caches = dict.fromkeys(("past_key", "past_value"), np.zeros((2, 2, 0, 8), np.float32))
    for feeds in steps():
        logits, *present = graph.run(["logits", "present_key", "present_value"], feeds | caches)
        caches = dict(zip(caches, present, strict=True))
        results.append(real(logits, feeds))
    return results


def run_in_place(path: Path) -> list[np.ndarray]:
    graph, results = session(path), []
    buffers = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.full((2, 2, ROOM, 8), 7, np.float32))
        for name in ("key", "value")
    }
    for feeds in steps():
        binding = graph.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(f"past_{name}", buffer)
            binding.bind_ortvalue_output(f"present_{name}", buffer)
        binding.bind_output("logits")
        graph.run_with_iobinding(binding)
        results.append(real(binding.get_outputs()[-1].numpy(), feeds))
    return results


WITHOUT_A_MASK = (
    ("int64[batch, total] attention_mask,", ""),
    ("wide = Unsqueeze(attention_mask, axis12)", ""),
    ("real = Cast<to = 9>(wide)", ""),
    ("visible = And(causal, real)", "visible = Identity(causal)"),
)


@pytest.mark.parametrize("cache", ["in-place", "concat"])
def test_lengths_that_follow_from_the_caches(cache: str, tmp_path: Path, library: str) -> None:
    onnx.save(with_logits(spelled_out(*WITHOUT_A_MASK)), tmp_path / "in.onnx")
    options = {"library": library, "max_length": 64, "cache": cache}
    if cache == "in-place":
        with pytest.raises(ExportError, match=r"\(Shape\) reads past_key, too; a cache of fixed size"):
            export_model(tmp_path / "in.onnx", tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
    else:
        assert export_model(tmp_path / "in.onnx", tmp_path / "out", **options).verification.status == "passed"


@pytest.mark.parametrize(("cache", "sizes"), [("in-place", ({64}, {64})), ("concat", SIZES["concat"])])
def test_caches_of_a_fixed_size(cache: str, sizes: tuple, tmp_path: Path, library: str) -> None:
    onnx.save(with_logits(with_room(written(), 64)), tmp_path / "in.onnx")
    report = export_model(tmp_path / "in.onnx", tmp_path / "out", library=library, cache=cache)
    check = report.verification
    assert (check.status, check.rows) == ("passed", "prompts of 17, 12 tokens, padded on the right")
    assert slots(tmp_path / "out" / "model.onnx") == sizes


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_folder(decoder(), tmp_path / "in")
    assert main([str(folder), str(tmp_path / "out"), "--no-verify", "--cache", "in-place"]) == 0
    proto = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    (past,) = (value for value in proto.input if value.name == "past.0.k")
    dims = [dim.dim_param or dim.dim_value for dim in past.type.tensor_type.shape.dim]
    assert dims == ["batch", KV_HEADS, "capacity", HEAD_SIZE]
    arguments = [str(folder), str(tmp_path / "engine"), "--target", "tensorrt", "--cache", "concat"]
    assert main([*arguments, "--no-verify"]) == 1
    assert "cache is of the target onnxruntime alone" in capsys.readouterr().err


def test_a_search_that_is_no_object(tmp_path: Path, library: str) -> None:
    folder = save_folder(decoder(), tmp_path / "in")
    config = json.loads((folder / "genai_config.json").read_text())
    (folder / "genai_config.json").write_text(json.dumps(config | {"search": []}))
    with pytest.raises(ExportError, match=r"search is \[\], expected an object"):
        export_model(folder, tmp_path / "out", library=library, cache="concat", verify=False)
