"""The loop: one prompt step, then a step for each new token."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from fdpp_ort.errors import FdppError
from fdpp_ort.generation.decoder import Decoder, last_row
from fdpp_ort.generation.sampling import Sampler


@dataclass(frozen=True)
class Statistics:
    """prefill_seconds: the graph over the prompt, without fetching logits and picking a token. decode_seconds: all
    decode steps, picking included; the first new token comes from the prompt, so there is one step fewer than tokens.
    """

    batch: int
    prompt_tokens: int  # of each sequence
    decode_steps: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.batch * self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """None where there was no decode step."""
        return self.batch * self.decode_steps / self.decode_seconds if self.decode_steps else None


@dataclass(frozen=True)
class Generation:
    """New tokens of each sequence, the end token left out, and why the last sequence ended: end, length, capacity."""

    tokens: list[list[int]]
    finish_reason: str
    statistics: Statistics


def generate(
    decoder: Decoder,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampler: Sampler | None = None,
    eos_ids: Collection[int] = (),
    on_token: Callable[[int, int], None] | None = None,
) -> Generation:
    """Continues `prompts` (B lists of equally many tokens) until each met a token of `eos_ids`, or `max_new_tokens`, or
    the cache's capacity. `on_token(row, token)` is told of each new token at once. `sampler`: greedy if left out.
    FdppError: prompts that are empty, of unequal length, more than the batch or longer than the cache."""
    lengths = {len(prompt) for prompt in prompts}
    if len(prompts) != decoder.batch or len(lengths) != 1 or 0 in lengths:
        raise FdppError(
            f"prompts of {sorted(len(prompt) for prompt in prompts)} tokens, "
            f"expected {decoder.batch} of one length of at least 1"
        )
    if max_new_tokens < 1:
        raise FdppError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    sampler = sampler or Sampler()

    start = time.perf_counter()
    logits = decoder.prefill(np.array(prompts, np.int64))
    prefill_seconds = time.perf_counter() - start
    next_tokens = sampler.pick(last_row(logits))[:, None]
    del logits  # as large as the prompt is long

    tokens: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    if sampler.is_greedy:
        following = decoder.greedy(next_tokens, max_new_tokens - 1)
    else:
        following = _sampled(decoder, sampler, next_tokens)
    steps = 0
    start = time.perf_counter()
    while True:
        for row in sorted(open_rows):
            token = int(next_tokens[row, 0])
            if token in eos_ids:
                open_rows.remove(row)
                continue
            tokens[row].append(token)
            if on_token is not None:
                on_token(row, token)
        if not open_rows:
            reason = "end"
            break
        if steps + 1 == max_new_tokens:
            reason = "length"
            break
        if decoder.length == decoder.capacity:
            reason = "capacity"
            break
        next_tokens = next(following)
        steps += 1
    decode_seconds = time.perf_counter() - start
    statistics = Statistics(len(prompts), len(prompts[0]), steps, prefill_seconds, decode_seconds)
    return Generation(tokens, reason, statistics)


def _sampled(decoder: Decoder, sampler: Sampler, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """As decoder.greedy(), with tokens that `sampler` draws."""
    while True:
        tokens = sampler.pick(decoder.step(tokens))[:, None]
        yield tokens
