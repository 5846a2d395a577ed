"""The prompts that verification runs: rows of tokens, with the padding that a graph takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from . import op_spec
from .attention_node import input_of
from .decoder_inputs import MASK, OF_ALL_ROWS, OF_EACH_ROW, Call
from .session import Cache, Unfit, attentions, stated_room

STEPS = 16  # tokens after the prompt
_LONG, _SHORT = 17, 12  # tokens of the prompts
_BIAS = op_spec.input_names(op_spec.ATTENTION).index("attention_bias")


@dataclass(frozen=True)
class Rows:
    """Rows by the tokens of their prompts, and the side, "left" or "right", on which shorter ones are padded."""

    lengths: tuple[int, ...]
    side: str = "left"

    @property
    def ragged(self) -> bool:
        """Whether there is padding."""
        return len(set(self.lengths)) > 1

    @property
    def prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(self.lengths)

    def mask(self, new: int) -> np.ndarray:
        """attention_mask, bool [rows, tokens], once `new` tokens were appended. Padding on the right stays at the end:
        a row's tokens lie side by side in the cache."""
        columns, lengths = np.arange(self.prompt + new), np.array(self.lengths)[:, None]
        return columns >= self.prompt - lengths if self.side == "left" else columns < lengths + new

    def calls(self, new: int, one_by_one: bool) -> list[Call]:
        """What appends the prompts, `one_by_one` token by token, or, with `new` > 0, another token after `new` - 1."""
        mask, rows = self.mask(new), len(self.lengths)
        if new:
            prompts = np.array(self.lengths) if self.side == "right" else np.full(rows, self.prompt)
            return [Call(mask, prompts + new - 1, 1)]
        length = 1 if one_by_one else self.prompt
        starts = range(0, self.prompt, length)
        return [Call(mask[:, : start + length], np.full(rows, start), length) for start in starts]

    def last(self) -> np.ndarray:
        """Where the last token of each prompt is."""
        return np.array(self.lengths) - 1 if self.side == "right" else np.full(len(self.lengths), self.prompt - 1)

    def __str__(self) -> str:
        lengths = ", ".join(map(str, self.lengths))
        padding = f", padded on the {self.side}" if self.ragged else ""
        return f"prompts of {lengths} tokens{padding}" if len(self.lengths) > 1 else f"a prompt of {lengths} tokens"


def rows_to_try(source: ir.Model, model: ir.Model, caches: list[Cache]) -> list[Rows]:
    """What to try, the best first, on the original graph `source` and the exported one."""
    shapes = {value.name: tuple(value.shape or ()) for value in source.graph.inputs}
    long = _longest(source, caches)
    one = Rows((long,))
    if "input_ids" not in shapes or any(isinstance(rows, int) for rows in shapes["input_ids"][:1]):
        return [one]
    now, told, ragged = attentions(model), shapes.keys(), (long, long - _LONG + _SHORT)
    plain = [Rows((long, long)), one]
    if MASK in told and all(input_of(node, _BIAS) is not None for node in now):
        return [Rows(ragged, "left"), *plain]
    counted = len(attentions(source)) == len(now) or "write_indices" in told
    if counted and 1 not in shapes["input_ids"] and told & OF_EACH_ROW and not told & OF_ALL_ROWS:
        return [Rows(ragged, "right"), *plain]
    return plain


def _longest(source: ir.Model, caches: list[Cache]) -> int:
    """Tokens of a prompt for which, and for the steps behind it, all caches have room."""
    room = stated_room(source, caches)
    if room is None:
        return _LONG
    if room < _LONG - _SHORT + 1 + STEPS:
        raise Unfit(f"its caches have room for {room} tokens alone")
    return min(_LONG, room - STEPS)
