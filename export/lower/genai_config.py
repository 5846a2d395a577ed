"""genai_config.json for the exported folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from ..errors import ExportError


def write_genai_config(config: dict[str, Any], path: Path, graph: str, library: str | None, cache: str | None) -> None:
    """Writes `config` to `path` with the decoder's file name `graph` and the op library's, if there is one.

    cache: one of CACHES, how onnxruntime-genai is to bind past and present; None: as `config` says. The library's is a
    bare file name, which onnxruntime-genai looks for beside the model; it refuses paths out of the folder.
    """
    config = copy.deepcopy(config)
    decoder = config["model"]["decoder"]
    decoder["filename"] = graph
    if library is not None:
        decoder.setdefault("session_options", {})["custom_ops_library"] = library
    if cache is not None:
        search = config.setdefault("search", {})
        if not isinstance(search, dict):
            raise ExportError(f"genai_config.json: search is {search!r}, expected an object")
        search["past_present_share_buffer"] = cache == "in-place"
    path.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
