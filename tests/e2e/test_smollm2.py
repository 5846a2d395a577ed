"""A real model, exported and run: same tokens as the original graph, in our loop and in onnxruntime-genai."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fdpp_ort.bench.quality import perplexity
from fdpp_ort.generation import Decoder, ModelFolder, TextCodec, generate, load_model

PROMPTS = ("What is the capital of France?", "Explain in simple words why the sky is blue.")
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def greedy_tokens():
    """greedy_tokens(folder) -> the new tokens of each prompt."""

    def run(folder) -> list[list[int]]:
        codec = TextCodec(folder)
        decoder = Decoder(load_model(ModelFolder.open(folder), "cpu"), batch=1, capacity=128)
        return [generate(decoder, [codec.encode_prompt(p, raw=False)], NEW_TOKENS).tokens[0] for p in PROMPTS]

    return run


def test_same_tokens_in_our_loop(smollm2, greedy_tokens):
    original, ours = greedy_tokens(smollm2["original"]), greedy_tokens(smollm2["fdpp"])
    assert [len(tokens) for tokens in original] == [NEW_TOKENS] * len(PROMPTS)
    assert ours == original


def test_everything_is_rewritten(smollm2):
    for name in ("fdpp", "fdpp-f16"):
        report = json.loads((smollm2[name] / "fdpp_report.json").read_text())
        assert report["left"] == []
        assert report["verification"]["status"] == "passed"


def test_every_node_ran_our_kernels(smollm2, greedy_tokens):
    from fdpp_ort import _core, last_plan

    _core.clear_plans()
    greedy_tokens(smollm2["fdpp-f16"])
    plans = last_plan()
    assert {p["op"]: sum(q["op"] == p["op"] for q in plans) for p in plans} == {
        "FdppAttention": 30,
        "FdppFlatGemm": 121,  # a layer: q, k and v; o; gate and up; down. And the head.
    }


def test_calibrated_on_one_text_and_run_on_another(smollm2, repository, greedy_tokens, tmp_path):
    """The README, then the page about attention."""
    import fdpp_ort
    from fdpp_ort.export import export_model

    folder, library = tmp_path / "unified", fdpp_ort.library_path()
    text = repository / "README.md"
    report = export_model(smollm2["original"], folder, calibrate=text, library=library, verify=False, max_length=1024)
    unified = report.calibration.unified
    assert len(unified) >= 25
    assert greedy_tokens(folder) == greedy_tokens(smollm2["fdpp"])

    def left() -> int:
        return sum(plan["out_of_range_rows"] for plan in fdpp_ort.last_plan())

    other = (repository / "docs" / "attention.md").read_text(encoding="utf-8")
    tokens = np.array(TextCodec(folder).encode(other))[None, :1024]
    before = left()
    found = [
        perplexity(Decoder(load_model(ModelFolder.open(f), "cpu"), 1, 1024), tokens) for f in (smollm2["fdpp"], folder)
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert left() - before <= 0.005 * tokens.size * sum(len(layer.heads) for layer in unified)


def test_half_the_weights(smollm2):
    sizes = {name: sum(f.stat().st_size for f in folder.glob("*.data")) for name, folder in smollm2.items()}
    assert sizes["fdpp-f16"] < 0.51 * sizes["original"]


def test_genai_takes_logits_of_last_tokens(smollm2, tmp_path):
    """In two prompts of different lengths, the shorter one padded on the right."""
    import onnxruntime_genai as genai

    from fdpp_ort import library_path
    from fdpp_ort.export import export_model

    folder = tmp_path / "last"
    export_model(smollm2["original"], folder, last_logits=True, verify=False, library=library_path())
    rows = []
    for path in (smollm2["original"], folder):
        model = genai.Model(str(path))
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=32, batch_size=2)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(genai.Tokenizer(model).encode_batch(["The capital of France is the city of", "Once"]))
        for _ in range(8):
            generator.generate_next_token()
        rows.append([list(generator.get_sequence(row)) for row in range(2)])
    assert rows[0][0][:8] != rows[0][1][:8] and rows[1] == rows[0]


def test_genai_runs_the_folder_unchanged(smollm2):
    import onnxruntime_genai as genai

    texts = []
    for name in ("original", "fdpp"):
        model = genai.Model(str(smollm2[name]))
        prompt = TextCodec(smollm2[name]).encode_prompt(PROMPTS[0], raw=False)
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=len(prompt) + NEW_TOKENS)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        texts.append(genai.Tokenizer(model).decode(generator.get_sequence(0)))
    assert "Paris" in texts[0]
    assert texts[1] == texts[0]
