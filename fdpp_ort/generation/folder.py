"""A model folder as onnxruntime-genai's builder and fdpp-export write it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdpp_ort.errors import FdppError

# onnxruntime-genai's names, for folders whose genai_config.json leaves them out.
_INPUTS = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "position_ids": "position_ids",
    "past_key_names": "past_key_values.%d.key",
    "past_value_names": "past_key_values.%d.value",
}
_OUTPUTS = {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. FdppError: not readable, not JSON, or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FdppError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise FdppError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


@dataclass(frozen=True)
class ModelFolder:
    """Where a model's files are and what its configuration says; None where it does not say."""

    path: Path
    model_file: Path
    inputs: dict[str, str]  # role -> graph input; the cache names hold a %d for the layer
    outputs: dict[str, str]  # role -> graph output
    context_length: int | None
    kv_heads: int | None
    head_size: int | None
    eos_ids: frozenset[int]

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """FdppError: no folder, a broken genai_config.json, or no model file."""
        path = Path(path)
        if not path.is_dir():
            raise FdppError(f"{path}: expected a model folder, found {'a file' if path.exists() else 'nothing'}")
        config_file = path / "genai_config.json"
        model = read_json(config_file).get("model", {}) if config_file.is_file() else {}
        decoder = model.get("decoder", {})
        eos = model.get("eos_token_id", [])
        return cls(
            path=path,
            model_file=_model_file(path, decoder.get("filename")),
            inputs={**_INPUTS, **decoder.get("inputs", {})},
            outputs={**_OUTPUTS, **decoder.get("outputs", {})},
            context_length=model.get("context_length"),
            kv_heads=decoder.get("num_key_value_heads"),
            head_size=decoder.get("head_size"),
            eos_ids=frozenset(eos if isinstance(eos, list) else [eos]),
        )


def _model_file(folder: Path, name: str | None) -> Path:
    if name is not None:
        if not (folder / name).is_file():
            raise FdppError(f"{folder / name}: the model file that genai_config.json names is missing")
        return folder / name
    found = sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise FdppError(f"{folder}: without a genai_config.json, expected one .onnx file, found {names}")
    return found[0]
