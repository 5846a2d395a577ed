"""What several commands read from their options."""

from __future__ import annotations

import argparse


def positive_numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected positive whole numbers, as 1,8, found {text!r}")
    return found
