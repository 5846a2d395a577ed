"""What self-tests say."""

from __future__ import annotations


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f"error: self-test: {what}")
