"""What a candidate's process is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """worker: a key of worker.RUNNERS. folder: of the model, or of transformers' config.json. provider: "cpu" or
    "cuda". threads: of the CPU, 0: the runtime's choice. new_tokens: steps that are timed. dtype: of transformers'
    weights, by PyTorch's name."""

    worker: str
    folder: str
    provider: str
    cuda_graph: bool = False
    threads: int = 0
    new_tokens: int = 32
    dtype: str = ""
