"""profiles.json: shapes of every input in both profiles, limits, and the commands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from small_models import FLOAT, FLOAT16, HEAD_SIZE, INT64, KV_HEADS, POSITIONS, add_input, decoder, save_folder

from fdpp_ort.cli.export import main
from fdpp_ort.export import ExportError, export_model


def profiles(proto: onnx.ModelProto, tmp_path: Path, context_length: int | None = None, **options) -> dict:
    folder = save_folder(proto, tmp_path / "in")
    if context_length is not None:
        config = json.loads((folder / "genai_config.json").read_text())
        config["model"]["context_length"] = context_length
        (folder / "genai_config.json").write_text(json.dumps(config))
    export_model(folder, tmp_path / "out", target="tensorrt", verify=False, **options)
    return json.loads((tmp_path / "out" / "profiles.json").read_text())


def bounds(smallest: list[int], best: list[int], largest: list[int]) -> dict:
    return {"min": smallest, "opt": best, "max": largest}


def test_shapes(tmp_path: Path) -> None:
    proto = decoder()
    add_input(proto, "position_ids", INT64, ["batch", "tokens"])
    add_input(proto, "fixed", FLOAT, [3, 4])
    found = profiles(proto, tmp_path, max_batch=4, max_length=32)
    assert (found["max_batch"], found["max_length"]) == (4, 32)
    cache = bounds(*([batch, KV_HEADS, 32, HEAD_SIZE] for batch in (1, 4, 4)))
    tokens, mask = bounds([1, 1], [4, 32], [4, 32]), bounds([1, 1], [4, 16], [4, 32])
    caches = {"past.0.k": cache, "past.0.v": cache}
    assert found["profiles"]["prefill"] == {
        "input_ids": tokens,
        "attention_mask": tokens,
        "position_ids": tokens,
        **caches,
    }
    step = bounds([1, 1], [4, 1], [4, 1])
    assert found["profiles"]["decode"] == {"input_ids": step, "attention_mask": mask, "position_ids": step, **caches}


@pytest.mark.parametrize(
    ("context_length", "expected"), [(None, POSITIONS), (24, 24), (100, POSITIONS)], ids=["none", "short", "long"]
)
def test_length_by_default(context_length: int | None, expected: int, tmp_path: Path) -> None:
    """cos_cache has POSITIONS rows: no model goes on beyond."""
    found = profiles(decoder(), tmp_path, context_length)
    assert (found["max_batch"], found["max_length"]) == (1, expected)


def shapes_of(command: str, option: str) -> list[str]:
    return [word.removeprefix(f"--{option}=") for word in shlex.split(command) if word.startswith(f"--{option}=")]


def test_commands(tmp_path: Path) -> None:
    found = profiles(decoder(dtype=FLOAT16), tmp_path, max_length=32)
    new, old, polygraphy = found["trtexec"]["10"], found["trtexec"]["8.6"], shlex.split(found["polygraphy"])
    caches = f"past.0.k:1x{KV_HEADS}x32x{HEAD_SIZE},past.0.v:1x{KV_HEADS}x32x{HEAD_SIZE}"
    assert new.startswith("trtexec --onnx=model.onnx --saveEngine=model.engine --stronglyTyped --dynamicPlugins=")
    assert shapes_of(new, "optShapes") == [
        f"input_ids:1x32,attention_mask:1x32,{caches}",
        f"input_ids:1x1,attention_mask:1x16,{caches}",
    ]
    words = shlex.split(new)
    assert words.index("--profile=0") < words.index("--profile=1") < len(words) - 3
    assert "--fp16 --plugins=libfdpp_trt.so" in old and "--profile" not in old
    assert shapes_of(old, "minShapes") == [f"input_ids:1x1,attention_mask:1x1,{caches}"]
    assert shapes_of(old, "optShapes") == [f"input_ids:1x1,attention_mask:1x16,{caches}"]
    assert shapes_of(old, "maxShapes") == [f"input_ids:1x32,attention_mask:1x32,{caches}"]
    assert polygraphy.count("--trt-max-shapes") == 2 and "--strongly-typed" in polygraphy
    first = polygraphy.index("--trt-opt-shapes")
    assert polygraphy[first + 1 : first + 3] == ["input_ids:[1,32]", "attention_mask:[1,32]"]


def test_float32_is_rounded_by_tensorrt(tmp_path: Path) -> None:
    found = profiles(decoder(), tmp_path)
    assert "--fp16" in found["trtexec"]["10"] and "--fp16" in found["polygraphy"]


def test_no_command_for_a_version_that_does_not_take_the_graph(tmp_path: Path) -> None:
    assert set(profiles(decoder(dtype=TensorProto.BFLOAT16), tmp_path)["trtexec"]) == {"10"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": POSITIONS + 1}, f"max_length is {POSITIONS + 1}, but cos_cache has {POSITIONS} positions"),
        ({"max_length": 0}, "max_length is 0, expected at least 1"),
        ({"max_batch": -1}, "max_batch is -1, expected at least 1"),
        ({"max_batch": 2, "target": "onnxruntime"}, "max_batch is of the target tensorrt alone"),
    ],
)
def test_limits_that_do_not_fit(options: dict, message: str, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_model(model_folder, tmp_path / "out", **{"target": "tensorrt", "verify": False, **options})
    assert not (tmp_path / "out").exists()


def test_an_input_of_unknown_size(tmp_path: Path) -> None:
    proto = decoder()
    add_input(proto, "pixels", FLOAT, ["images", 3])
    with pytest.raises(ExportError, match="graph input pixels has shape .*, expected fixed sizes, or one of input_ids"):
        profiles(proto, tmp_path)


def test_the_command_prints_what_builds_an_engine(model_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--target", "tensorrt", "--no-verify", "--max-batch", "2", "--max-length", "16"]
    assert main([str(model_folder), str(tmp_path / "out"), *arguments]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "profiles.json").read_text())
    for command in (*found["trtexec"].values(), found["polygraphy"]):
        assert command in printed
