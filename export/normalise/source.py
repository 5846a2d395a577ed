"""Which files IN stands for: the graph, and the files beside it that travel along."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ExportError

GENAI_CONFIG = "genai_config.json"
# Of each group, onnxruntime-genai's tokenizer needs one file.
_TOKENIZER_FILES = (("tokenizer_config.json",), ("tokenizer.json", "tokenizer.model"))


@dataclass(frozen=True)
class Source:
    """`folder` is the one whose other files travel along (None: a lone .onnx file)."""

    model: Path
    folder: Path | None
    genai_config: dict[str, Any] | None


def find_source(path: Path) -> Source:
    """The graph at `path`, a model folder or an .onnx file.

    Raises ExportError if it does not exist, if it is not clear which graph is meant, or if onnxruntime-genai could not
    load the folder (no tokenizer, further graphs, another custom-op library).
    """
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise ExportError(f"{path}: no such file or folder; expected a model folder or an .onnx file")
    config = _read_genai_config(path.parent)
    if config is None or config["model"]["decoder"]["filename"] != path.name:
        return Source(path, None, None)
    return _in_folder(path.parent)


def side_files(folder: Path, used: set[Path]) -> list[Path]:
    """Files of `folder` to carry along: all but hidden ones, graphs, their data (*.onnx*) and those in `used`.

    `used` holds resolved paths.
    """
    return sorted(
        file
        for file in folder.iterdir()
        if not file.name.startswith(".") and ".onnx" not in file.name and _is_wanted(file, used)
    )


def _is_wanted(file: Path, used: set[Path]) -> bool:
    if file.is_symlink() and not file.exists():
        raise ExportError(f"{file}: dangling symbolic link")
    return file.is_file() and file.resolve() not in used


def _in_folder(folder: Path) -> Source:
    config = _read_genai_config(folder)
    if config is None:
        return Source(_only_graph(folder), folder, None)
    name = config["model"]["decoder"]["filename"]
    model = folder / name
    if Path(name).name != name or not model.is_file():
        raise ExportError(f"{folder / GENAI_CONFIG} names the graph {name!r}, which is not a file of that folder")
    for group in _TOKENIZER_FILES:
        if not any((folder / file).is_file() for file in group):
            raise ExportError(
                f"{folder} has {GENAI_CONFIG} but no {' or '.join(group)}: onnxruntime-genai could not load the export"
            )
    return Source(model, folder, config)


def _only_graph(folder: Path) -> Path:
    if (folder / "model.onnx").is_file():
        return folder / "model.onnx"
    graphs = sorted(folder.glob("*.onnx"))
    if len(graphs) != 1:
        found = ", ".join(graph.name for graph in graphs) or "none"
        raise ExportError(f"{folder}: expected model.onnx or a single .onnx file, found {found}")
    return graphs[0]


def _read_genai_config(folder: Path) -> dict[str, Any] | None:
    path = folder / GENAI_CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        decoder = config["model"]["decoder"]
        name = decoder["filename"]
        parts = [key for key, part in config["model"].items() if isinstance(part, dict) and "filename" in part]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path}: expected JSON with model.decoder.filename ({error})") from error
    if not isinstance(name, str):
        raise ExportError(f"{path}: model.decoder.filename is {name!r}, expected a file name")
    if len(parts) > 1:
        raise ExportError(f"{path} names several graphs ({', '.join(parts)}); only models of one decoder are exported")
    library = decoder.get("session_options", {}).get("custom_ops_library")
    if library is not None:
        raise ExportError(f"{path} already names the custom_ops_library {library!r}; onnxruntime-genai loads only one")
    return config
