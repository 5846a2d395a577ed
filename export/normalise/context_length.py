"""How many tokens a row of the model may have, by the configuration beside the graph."""

from __future__ import annotations

import json
from typing import Any

from ..errors import ExportError
from .source import Source

# transformers' configuration, which its exporter, optimum and others leave beside the graph.
_CONFIG = "config.json"
_KEYS = ("max_position_embeddings", "n_positions", "seq_length")
_UNKNOWN = 32768


def context_length(source: Source) -> int:
    """Of genai_config.json or else of config.json; 32768 where neither says. Raises ExportError for a malformed one."""
    length = (source.genai_config or {}).get("model", {}).get("context_length")
    if length is None:
        config = _transformers_config(source)
        nested = [config, *(part for part in config.values() if isinstance(part, dict))]
        length = next((part[key] for part in nested for key in _KEYS if key in part), _UNKNOWN)
    if not isinstance(length, int) or length < 1:
        raise ExportError(f"{source.model.parent}: its configuration has a context length of {length!r}")
    return length


def _transformers_config(source: Source) -> dict[str, Any]:
    path = source.model.parent / _CONFIG
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ExportError(f"{path}: expected a JSON object")
    return config
