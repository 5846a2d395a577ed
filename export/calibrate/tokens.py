"""The user's text as token ids."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from fdpp_ort.errors import FdppError
from fdpp_ort.generation.text import TextCodec

from ..errors import ExportError

_FEWEST = 256


def read_tokens(file: Path, model_folder: Path) -> np.ndarray:
    """Token ids, int64 [tokens], of a UTF-8 text in the words of the folder's tokenizer, or those in an .npz file.

    Raises ExportError for a file that cannot be read, for an .npz that is not one array of integers and for few tokens.
    """
    tokens = _from_npz(file) if file.suffix == ".npz" else _from_text(file, model_folder)
    if tokens.size < _FEWEST:
        raise ExportError(f"{file}: {tokens.size} tokens are too few to calibrate on, expected at least {_FEWEST}")
    return tokens


def _from_text(file: Path, model_folder: Path) -> np.ndarray:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{file}: the text to calibrate on cannot be read: {error}") from error
    try:
        return np.array(TextCodec(model_folder).encode(text), np.int64)
    except FdppError as error:
        raise ExportError(f"{error}; give token ids in an .npz file instead of a text") from error


def _from_npz(file: Path) -> np.ndarray:
    try:
        with np.load(file) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ExportError(f"{file}: not an .npz file of NumPy: {error}") from error
    if len(found) != 1:
        raise ExportError(f"{file}: expected one array of token ids, found {', '.join(found) or 'none'}")
    ((name, tokens),) = found.items()
    if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2):
        raise ExportError(
            f"{file}: {name} is {tokens.dtype} {list(tokens.shape)}, expected integers [tokens] or [rows, tokens]"
        )
    return tokens.astype(np.int64).ravel()
