"""fdpp-generate and fdpp-info as a user calls them, and what they say of bad input."""

from __future__ import annotations

import json
import shutil

import onnxruntime
import pytest

import fdpp_ort
from fdpp_ort.generation import Decoder, generate, load_model


def test_generate_prints_text_and_writes_statistics(command, fdpp_folder, tmp_path):
    statistics = tmp_path / "statistics.json"
    done = command("generate", fdpp_folder, "--prompt", "w3 w1 w4", "--max-new-tokens", 6, "--stats-json", statistics)
    assert done.returncode == 0, done.stderr
    written = json.loads(statistics.read_text())
    model = load_model(fdpp_folder, "cpu")
    expected = generate(Decoder(model, 1, 16), [[3, 1, 4]], 6, eos_ids=model.folder.eos_ids).tokens[0]
    assert written["tokens"] == expected
    assert done.stdout.split() == [f"w{token}" for token in expected]
    assert (written["prompt_tokens"], written["device"]) == (3, "cpu")
    assert written["peak_memory_bytes"] > 10e6


def test_generate_reads_a_file_and_prints_tokens(command, fdpp_folder, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("w3 w1 w4")
    texts = command("generate", fdpp_folder, "--prompt", "w3 w1 w4", "--max-new-tokens", 4)
    tokens = command("generate", fdpp_folder, "-f", prompt, "--max-new-tokens", 4, "--tokens")
    assert [f"w{token}" for token in tokens.stdout.split()] == texts.stdout.split()


def expect_error(done, *fragments: str) -> None:
    assert done.returncode == 1
    assert any(line.startswith("fdpp-generate: error: ") for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr
    for fragment in fragments:
        assert fragment in done.stderr


@pytest.fixture
def folder(fdpp_folder, tmp_path):
    return shutil.copytree(fdpp_folder, tmp_path / "copy")


def test_missing_folder(command, tmp_path):
    expect_error(command("generate", tmp_path / "none", "--prompt", "w1"), "expected a model folder, found nothing")


def test_missing_model_file(command, folder):
    (folder / "model.onnx").unlink()
    expect_error(command("generate", folder, "--prompt", "w1"), "model.onnx", "missing")


def test_broken_model_file(command, folder):
    (folder / "model.onnx").write_bytes(b"\x08\x09 no graph")
    expect_error(command("generate", folder, "--prompt", "w1"), "model.onnx", "ONNX Runtime cannot load the model")


def test_broken_configuration(command, folder):
    (folder / "genai_config.json").write_text("{")
    expect_error(command("generate", folder, "--prompt", "w1"), "genai_config.json: cannot be read as JSON")


def test_missing_tokenizer(command, folder):
    (folder / "tokenizer.json").unlink()
    expect_error(command("generate", folder, "--prompt", "w1"), "tokenizer.json: the tokenizer is missing")


def test_broken_tokenizer(command, folder):
    (folder / "tokenizer.json").write_text("{}")
    expect_error(command("generate", folder, "--prompt", "w1"), "cannot be read as a tokenizer")


def test_graph_without_a_cache(command, folder):
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["inputs"] = {"past_key_names": "other.%d.key", "past_value_names": "other.%d.value"}
    (folder / "genai_config.json").write_text(json.dumps(config))
    expect_error(command("generate", folder, "--prompt", "w1"), "no KV cache named other.%d.key")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "w1 " * 65], "the prompt has 65 tokens, more than the context length of 64"),
        (["--prompt", "w1 " * 9, "--capacity", 8], "the prompt has 9 tokens, more than the capacity of 8"),
        (["--prompt", "w1", "--capacity", 65], "more than the model's context length 64"),
        (["--prompt", ""], "the prompt is empty"),
        (["-f", "no-such-file"], "no-such-file: the prompt cannot be read"),
        (["--prompt", "w1", "--max-new-tokens", 0], "max_new_tokens is 0"),
        (["--prompt", "w1", "--temperature", -1], "temperature is -1.0"),
        (["--prompt", "w1", "--top-p", 0], "top_p is 0.0"),
        (["--prompt", "w1", "--cuda-graph", "--provider", "cpu"], "a CUDA graph was requested"),
        (["--prompt", "w1", "--stats-json", "no-such-folder/file"], "the statistics cannot be written"),
    ],
)
def test_bad_arguments(command, fdpp_folder, arguments, message):
    expect_error(command("generate", fdpp_folder, *arguments), message)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime offers CUDA"
)
def test_cuda_without_the_provider(command, fdpp_folder):
    done = command("generate", fdpp_folder, "--prompt", "w1", "--provider", "cuda")
    expect_error(done, "has no CUDAExecutionProvider; install onnxruntime-gpu")


def test_old_onnxruntime(command, fdpp_folder, tmp_path):
    old = tmp_path / "old"
    (old / "onnxruntime").mkdir(parents=True)
    (old / "onnxruntime" / "__init__.py").write_text('__version__ = "1.19.2"\n')
    done = command("generate", fdpp_folder, "--prompt", "w1", path=(old,))
    expect_error(done, "onnxruntime 1.19.2 is too old: fdpp_ort needs 1.20 or later")


def test_info_prints_every_variant(command):
    done = command("info")
    assert done.returncode == 0, done.stderr
    for variant in fdpp_ort.info()["variants"]:
        assert variant["name"] in done.stdout
    assert fdpp_ort.library_path() in done.stdout.replace("\n", "")


def test_info_says_why_there_is_no_gpu(command, tmp_path):
    done = command("info", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == fdpp_ort.info()
    if report["gpu"] is None:
        assert f"none: {report['gpu_absent']}"[:40] in command("info").stdout


def test_info_works_without_onnxruntime(command, tmp_path):
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "onnxruntime.py").write_text("raise ImportError('not here')\n")
    done = command("info", path=(absent,))
    assert done.returncode == 0, done.stderr
    assert "install onnxruntime or onnxruntime-gpu" in done.stdout
