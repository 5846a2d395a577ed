"""The real model: SmolLM2-135M, made by the demo's steps in the demo's folder and kept there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2(repository) -> dict[str, Path]:
    """Folders "original" (float32, CPU), "fdpp" and "fdpp-f16" (float16 weights)."""
    sys.path.insert(0, str(repository / "examples" / "demo"))
    try:
        from rich.console import Console

        import demo
        from steps import Workshop

        return demo.cpu_folders(Workshop(demo.WORK, Console(stderr=True)))
    finally:
        sys.path.pop(0)
