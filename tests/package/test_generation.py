"""The decode loop: caches that are appended to in place, the same tokens from both graphs, ends, sampling, text."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import tiny_decoder

from fdpp_ort import FdppError
from fdpp_ort.generation import Decoder, Sampler, TextCodec, generate, load_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def original(original_folder):
    return load_model(original_folder, "cpu")


@pytest.fixture(scope="module")
def ours(fdpp_folder):
    return load_model(fdpp_folder, "cpu")


def tokens_of(model, prompts, count, capacity=48):
    return generate(Decoder(model, len(prompts), capacity), prompts, count).tokens


def test_loop_equals_recomputing_the_whole_prefix(original, original_folder):
    """Without a cache that is carried on: each token from a fresh run over all tokens before it."""
    session = onnxruntime.InferenceSession(str(original_folder / "model.onnx"))
    empty = np.zeros((1, tiny_decoder.KV_HEADS, 0, tiny_decoder.HEAD_SIZE), np.float32)
    tokens = list(PROMPT)
    for _ in range(12):
        ids = np.array([tokens], np.int64)
        caches = {"past_key_values.0.key": empty, "past_key_values.0.value": empty}
        (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids), **caches})
        tokens.append(int(logits[0, -1].argmax()))
    assert tokens_of(original, [PROMPT], 12) == [tokens[len(PROMPT) :]]


def test_both_graphs_give_the_same_tokens(original, ours):
    assert tokens_of(ours, [PROMPT], 30) == tokens_of(original, [PROMPT], 30)


def test_rows_of_a_batch_are_independent(ours):
    prompts = [PROMPT, PROMPT[::-1], [7] * len(PROMPT)]
    assert tokens_of(ours, prompts, 10) == [tokens_of(ours, [prompt], 10)[0] for prompt in prompts]


def test_a_decoder_serves_one_prompt_after_another(ours):
    decoder = Decoder(ours, 1, 48)
    first = generate(decoder, [PROMPT], 10).tokens
    generate(decoder, [[8] * 30], 10)
    assert generate(decoder, [PROMPT], 10).tokens == first


def test_ends_at_an_end_token(ours):
    free = tokens_of(ours, [PROMPT], 10)[0]
    end = free[4]
    result = generate(Decoder(ours, 1, 48), [PROMPT], 10, eos_ids={end})
    assert (result.tokens[0], result.finish_reason) == (free[: free.index(end)], "end")


def test_ends_at_the_capacity(ours):
    result = generate(Decoder(ours, 1, len(PROMPT) + 3), [PROMPT], 10)
    assert (len(result.tokens[0]), result.finish_reason) == (4, "capacity")  # the last one is not fed back


def test_statistics_count_steps(ours):
    statistics = generate(Decoder(ours, 2, 48), [PROMPT, PROMPT], 5).statistics
    assert (statistics.batch, statistics.prompt_tokens, statistics.decode_steps) == (2, len(PROMPT), 4)
    assert statistics.decode_tokens_per_second == pytest.approx(2 * 4 / statistics.decode_seconds)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1, 2], [1, 2, 3]], r"prompts of \[2, 3\] tokens, expected 2 of one length"),
        ([[1, 2]], "expected 2 of one length"),
        ([[], []], "at least 1"),
        ([[1] * 60, [1] * 60], "60 tokens do not fit the KV cache's capacity of 48"),
        ([[1, 40], [1, 2]], r"tokens lie in 1\.\.40, the vocabulary has 40 entries"),
    ],
)
def test_bad_prompts_are_refused(ours, prompts, message):
    with pytest.raises(FdppError, match=message):
        generate(Decoder(ours, 2, 48), prompts, 4)


def test_capacity_is_bounded_by_the_context(ours):
    with pytest.raises(FdppError, match="capacity of 65 tokens is more than the model's context length 64"):
        Decoder(ours, 1, tiny_decoder.CONTEXT_LENGTH + 1)


def test_sampling_follows_the_distribution():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))

    def shares(**options):
        sampler = Sampler(temperature=1.0, seed=1, **options)
        return np.bincount([sampler.pick(logits)[0] for _ in range(4000)], minlength=4) / 4000

    assert shares() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert shares(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(top_p=0.75) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(top_p=0.4) == pytest.approx([1, 0, 0, 0])


def test_sampling_repeats_with_its_seed():
    logits = np.random.default_rng(0).standard_normal((1, 50))
    draws = [[Sampler(1.0, seed=5).pick(logits)[0]] for _ in range(3)]
    assert draws[0] == draws[1] == draws[2]


def test_nan_logits_are_an_error():
    with pytest.raises(FdppError, match="NaN"):
        Sampler().pick(np.array([[0.0, np.nan]]))


@pytest.fixture
def folder(fdpp_folder, tmp_path):
    return shutil.copytree(fdpp_folder, tmp_path / "copy")


def test_chat_template_from_a_file_or_the_configuration(folder):
    assert TextCodec(folder).encode_prompt("w5", raw=False) == [5]
    template = "{{ bos_token }} {{ messages[0].content }}{% if add_generation_prompt %} w9{% endif %}"
    configuration = {"bos_token": {"content": "w1"}, "chat_template": [{"name": "default", "template": template}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    assert TextCodec(folder).encode_prompt("w5", raw=False) == [1, 5, 9]
    (folder / "chat_template.jinja").write_text("w2 {{ messages[0].content }}")
    assert TextCodec(folder).encode_prompt("w5", raw=False) == [2, 5]
    assert TextCodec(folder).encode_prompt("w5", raw=True) == [5]


@pytest.mark.parametrize("template", ["{{ raise_exception('no system role') }}", "{% if %}", "{{ missing.field }}"])
def test_a_failing_chat_template_is_an_error(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(FdppError, match="the chat template fails"):
        TextCodec(folder).encode_prompt("w5", raw=False)


def test_folder_without_genai_config(folder, ours):
    (folder / "genai_config.json").unlink()
    model = load_model(folder, "cpu")
    assert tokens_of(model, [PROMPT], 8) == tokens_of(ours, [PROMPT], 8)
