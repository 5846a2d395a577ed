"""What a decoder's graph is told besides its tokens, by the names of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOKENS = ("input_ids", "inputs_embeds")
MASK = "attention_mask"
# Those that say how long each row is, and those that say one thing of all.
OF_EACH_ROW = {MASK, "write_indices", "past_seq_len", "seqlens_k"}
OF_ALL_ROWS = {"cache_position", "past_sequence_length"}


@dataclass(frozen=True)
class Call:
    """One run of a decoder, which appends `tokens` new tokens to each row, padding among them.

    mask: bool [batch, columns], true where a slot of the row's cache then holds a token, false for padding and slots
    not in use. first: int [batch], the slot of each row's first new token."""

    mask: np.ndarray
    first: np.ndarray
    tokens: int

    def inputs(self) -> dict[str, list[np.ndarray]]:
        """By name the forms that an input has, of different ranks; without those that cannot say what there is."""
        last = self.mask.shape[1] - 1 - self.mask[:, ::-1].argmax(axis=1)  # slot of each row's last token
        total = last.max() + 1
        places = self.first[:, None] + np.arange(self.tokens)
        known = {
            MASK: [self.mask],
            # Counted from the first token that is no padding, as transformers does.
            "position_ids": [np.take_along_axis(np.maximum(self.mask.cumsum(axis=1) - 1, 0), places, axis=1)],
            "write_indices": [self.first],
            # GroupQueryAttention's seqlens_k, and its total_sequence_length; the first names are Olive's.
            **dict.fromkeys(("past_seq_len", "seqlens_k"), [last, last[:, None]]),
            **dict.fromkeys(("total_seq_len", "total_sequence_length"), [np.array(total), np.array([total])]),
        }
        if np.all(self.first == self.first[0]):
            known |= {"cache_position": [places[0]], "past_sequence_length": [self.first[:1]]}
        return known
