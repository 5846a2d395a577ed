"""A file of random weights, which graphs share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from onnx import helper

from common.shapes import Stored

WEIGHTS_FILE = "weights.bin"
_CHUNK = 1 << 21  # numbers drawn at a time
_AHEAD = 64  # chunks drawn before they are written


def write_weights(folder: Path, stored: Iterable[Stored]) -> None:
    """FOLDER/weights.bin: the tensors one after the other."""
    seeds = np.random.SeedSequence(0)
    pieces = (
        (tensor, seeds.spawn(1)[0], min(_CHUNK, tensor.count - start))
        for tensor in stored
        for start in range(0, tensor.count, _CHUNK)
    )
    # The threads' work is numpy's alone, which lets them run side by side.
    with open(folder / WEIGHTS_FILE, "wb") as file, ThreadPoolExecutor() as pool:
        while group := list(itertools.islice(pieces, _AHEAD)):
            file.writelines(pool.map(_numbers, group))


def _numbers(piece: tuple[Stored, np.random.SeedSequence, int]) -> bytes:
    tensor, seed, count = piece
    dtype = helper.tensor_dtype_to_np_dtype(tensor.type)
    random = np.random.default_rng(seed)
    if dtype == np.uint8:
        return random.bytes(count)
    if tensor.deviation == 0:
        return np.full(count, tensor.mean, dtype).tobytes()
    drawn = random.standard_normal(count, np.float32)
    drawn *= np.float32(tensor.deviation)
    return drawn.astype(dtype).tobytes()
