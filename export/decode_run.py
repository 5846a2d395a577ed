"""A prompt and decode steps of a decoder's graph in ONNX Runtime, on rows of different lengths."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .decoder_inputs import Call
from .errors import ExportError
from .progress import Progress
from .prompts import STEPS, Rows
from .session import Cache, Unfit, empty_past, feeds_for, open_session, takes_one_token

_SEED = 20240501


@dataclass(frozen=True)
class Graph:
    """A graph file and what its session needs."""

    name: str
    path: Path
    provider: str
    library: Path | None = None


@dataclass
class Record:
    """logits: float32 [tokens, vocabulary] of each run, without padding, or of each row's last token alone where the
    graph makes no others. fed: int64 [rows, tokens] of each run. following: float32 [rows, vocabulary] of each run, of
    the token after the last one. caches: the present outputs of the last run by name."""

    logits: list[np.ndarray] = field(default_factory=list)
    fed: list[np.ndarray] = field(default_factory=list)
    following: list[np.ndarray] = field(default_factory=list)
    caches: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def last_alone(self) -> bool:
        """Whether the prompt's logits are of one token of each row."""
        return len(self.logits[0]) == len(self.fed[0]) and self.fed[0].shape[1] > 1

    @property
    def greedy(self) -> np.ndarray:
        """int64 [rows, runs]: the likeliest token after each run."""
        return np.stack([logits.argmax(axis=-1) for logits in self.following], axis=1)


def run(graph: Graph, caches: list[Cache], rows: Rows, fed: list[np.ndarray], progress: Progress | None) -> Record:
    """Runs the prompts and STEPS single tokens: those in `fed`, then random prompts and the graph's own greedy tokens.

    Raises ExportError where the graph fails and Unfit where there is nothing to run or no value for an input.
    """
    session = open_session(f"the {graph.name} graph", graph.path, graph.provider, graph.library)
    names = ["logits", *(cache.present for cache in caches)]
    vocabulary = _vocabulary(session)
    past = empty_past(session, caches, len(rows.lengths), rows.prompt + STEPS)
    one_by_one = takes_one_token(session)
    record = Record()
    for step in range(1 + STEPS):
        if step < len(fed):
            tokens = fed[step]
        elif step == 0:
            tokens = np.random.default_rng(_SEED).integers(0, vocabulary, (len(rows.lengths), rows.prompt))
        else:
            tokens = record.greedy[:, -1:]
        try:
            logits, past = _logits(session, names, tokens, rows.calls(step, one_by_one), past)
        except Unfit:
            raise
        except Exception as error:  # ONNX Runtime's exception classes share no public base
            raise ExportError(f"verification: the {graph.name} graph fails on step {step}: {error}") from error
        if logits.ndim != 3 or logits.shape[:2] not in (tokens.shape, (len(tokens), 1)):
            raise ExportError(
                f"verification: the {graph.name} graph's logits have shape {list(logits.shape)} for tokens of shape "
                f"{list(tokens.shape)}"
            )
        _add(record, rows, tokens, logits)
        if progress is not None:
            progress(f"running the {graph.name} graph", step + 1, 1 + STEPS)
    record.caches = {cache.present: past[cache.past] for cache in caches}
    return record


def _logits(
    session: Any, names: list[str], tokens: np.ndarray, calls: list[Call], past: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Of `tokens`, of which each of `calls` takes its own in turn, and what past is afterwards. names: the outputs,
    logits first, then present ones in the order of `past`."""
    logits, begin = [], 0
    for call in calls:
        feeds = feeds_for(session, tokens[:, begin : begin + call.tokens], call, past)
        found, *present = session.run(names, feeds)
        logits.append(found.astype(np.float32))
        past = dict(zip(past, present, strict=True))
        begin += call.tokens
    return np.concatenate(logits, axis=1), past


def _vocabulary(session: Any) -> int:
    shapes = {output.name: output.shape for output in session.get_outputs()}
    if "logits" not in shapes:
        raise Unfit("the graph has no output named logits")
    *_, vocabulary = shapes["logits"] or [None]
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise Unfit("the vocabulary's size is not in the shape of logits")
    return vocabulary


def _add(record: Record, rows: Rows, tokens: np.ndarray, logits: np.ndarray) -> None:
    """Adds the outcome of one run to `record`; logits [rows, tokens or 1, vocabulary]."""
    real, last = np.ones(logits.shape[:2], bool), np.zeros(len(tokens), int)
    if logits.shape[1] > 1:
        real, last = rows.mask(0), rows.last()
    record.logits.append(logits[real])
    record.following.append(logits[np.arange(len(tokens)), last])
    record.fed.append(tokens)
