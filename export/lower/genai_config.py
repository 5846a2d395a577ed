"""genai_config.json for the exported folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any


def write_genai_config(config: dict[str, Any], path: Path, graph: str, library: str | None) -> None:
    """Writes `config` to `path` with the decoder's file name `graph` and the op library's, if there is one.

    onnxruntime-genai takes a bare file name and looks for it beside the model; paths out of the folder are refused.
    """
    config = copy.deepcopy(config)
    decoder = config["model"]["decoder"]
    decoder["filename"] = graph
    if library is not None:
        decoder.setdefault("session_options", {})["custom_ops_library"] = library
    path.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
