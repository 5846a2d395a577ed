"""Writing files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fdpp_ort.errors import FdppError


def write_json(path: Path, content: Any, what: str) -> None:
    """Beside, then renamed, so that nobody reads half of it. FdppError: `what`, as messages call it, cannot be
    written."""
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise FdppError(f"{path}: {what} cannot be written: {error}") from error
