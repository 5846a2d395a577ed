"""Whether an exported model says what the original says: greedy tokens, and the perplexity of a text."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np

from fdpp_ort.bench import machine
from fdpp_ort.errors import FdppError
from fdpp_ort.files import write_json
from fdpp_ort.generation import Decoder, ModelFolder, TextCodec, generate, load_model

PACKAGES = ("fdpp-ort", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")
GREEDY_TOKENS = 512
LARGEST_DIFFERENCE = 1e-3  # of perplexities, of the original's


def negative_log_likelihood(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """float64 [tokens - 1], of each next token; logits [tokens, vocabulary]. FdppError: logits of fewer tokens."""
    if len(logits) != len(tokens):
        raise FdppError(f"logits of {len(logits)} of {len(tokens)} tokens: export without --last-logits")
    logits, following = logits[:-1].astype(np.float64), tokens[1:]
    highest = logits.max(axis=-1)
    total = np.log(np.exp(logits - highest[:, None]).sum(axis=-1)) + highest
    return total - logits[np.arange(len(following)), following]


def perplexity(decoder: Decoder, pieces: np.ndarray) -> float:
    """Over all `pieces`, int64 [pieces, tokens]."""
    losses = [negative_log_likelihood(decoder.prefill(row[None]).numpy()[0], row) for row in pieces]
    return math.exp(np.concatenate(losses).mean())


def cut(files: list[Path], codec: TextCodec, row: int, count: int) -> tuple[np.ndarray, list[dict]]:
    """`count` pieces of `row` tokens from each file, evenly over it, and what the files are. FdppError: a file that
    cannot be read or is too short."""
    pieces, described = [], []
    for file in files:
        try:
            content = file.read_bytes()
            text = content.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FdppError(f"{file}: cannot be read as a text: {error}") from error
        tokens = np.array(codec.encode(text), np.int64)
        if tokens.size < row:
            raise FdppError(f"{file} has {tokens.size} tokens, expected at least {row}")
        begins = np.linspace(0, tokens.size - row, count).astype(int)
        pieces += [tokens[begin : begin + row] for begin in begins]
        described.append({"name": file.name, "tokens": int(tokens.size), "sha256": hashlib.sha256(content).hexdigest()})
    return np.stack(pieces), described


def agreement(tokens: list[list[int]], original: list[list[int]]) -> list[int]:
    """For each prompt, how many tokens are the original's before the first that is not."""
    counts = []
    for row, expected in zip(tokens, original, strict=True):
        same = 0
        while same < min(len(row), len(expected)) and row[same] == expected[same]:
            same += 1
        counts.append(same)
    return counts


def partings(
    decoder: Decoder, prompts: np.ndarray, tokens: list[list[int]], original: list[list[int]], same: list[int]
) -> list[dict]:
    """Where rows part from the original's: what the original's graph, run over all before that, gives both tokens. Its
    logits may be no further apart than neighbouring numbers of their type: then either token is as good.

    decoder: the original's. same: of agreement(). logits: of the original's token and of ours. spacing: from the first
    to the next larger number of its type."""
    found = []
    for index, count in enumerate(same):
        if count == min(len(tokens[index]), len(original[index])):
            continue
        before = np.concatenate([prompts[index], np.array(original[index][:count], prompts.dtype)])
        logits = decoder.prefill(before[None]).numpy()[0, -1]
        both = [logits[row[index][count]] for row in (original, tokens)]
        found.append(
            {
                "prompt": index,
                "after": count,
                "logits": [float(logit) for logit in both],
                "spacing": float(np.spacing(abs(both[0]))),
            }
        )
    return found


def compare_quality(
    original: Path,
    fdpp: Path,
    text: Path,
    *,
    new_tokens: int,
    prompt_tokens: int,
    row: int,
    pieces: int,
    provider: str,
    cuda_graph: bool,
    output: Path | None,
) -> dict:
    """Perplexity over `pieces` pieces of the text, of `row` tokens each, whose first `prompt_tokens` are continued by
    `new_tokens` greedy ones. FdppError: bad input."""
    if prompt_tokens > row:
        raise FdppError(f"prompts of {prompt_tokens} tokens are longer than the pieces of {row}")
    cuts, texts = cut([text], TextCodec(original), row, pieces)
    capacity = max(row, prompt_tokens + new_tokens)
    found, tokens = {}, {}
    # The original comes last: where they part, it is asked once more.
    for name, folder in (("fdpp", fdpp), ("original", original)):
        model = load_model(ModelFolder.open(folder), provider, cuda_graph)
        decoder = Decoder(model, 1, capacity)
        found[name] = perplexity(decoder, cuts)
        tokens[name] = _greedy(decoder, cuts[:, :prompt_tokens], new_tokens)
        if name == "original":
            same = agreement(tokens["fdpp"], tokens["original"])
            parted = partings(decoder, cuts[:, :prompt_tokens], tokens["fdpp"], tokens["original"], same)
        del decoder, model
    difference = abs(found["fdpp"] / found["original"] - 1)
    content = {
        **machine.describe(PACKAGES),
        "original": str(original),
        "fdpp": str(fdpp),
        "texts": texts,
        "new_tokens": new_tokens,
        "same_tokens": same,
        "partings": parted,
        "perplexity": found,
        "perplexity_difference": difference,
        "passed": all(count == new_tokens for count in same) and difference <= LARGEST_DIFFERENCE,
    }
    if output is not None:
        write_json(output, content, "the results")
    return content


def _greedy(decoder: Decoder, prompts: np.ndarray, new_tokens: int) -> list[list[int]]:
    """Ends of text ignored."""
    return [generate(decoder, [prompt.tolist()], new_tokens).tokens[0] for prompt in prompts]
