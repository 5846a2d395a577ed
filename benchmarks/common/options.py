"""Parsing of command lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def comma_separated(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        return names

    return parse


def shapes(text: str) -> list[tuple[int, int]]:
    """NxK,..."""
    return [_shape(name) for name in text.split(",")]


def _shape(name: str) -> tuple[int, int]:
    n, _, k = name.partition("x")
    if not (n.isdecimal() and k.isdecimal() and int(n) > 0 and int(k) > 0):
        raise argparse.ArgumentTypeError(f"{name!r} is no NxK")
    return int(n), int(k)


def numbers(text: str) -> list[int]:
    names = text.split(",")
    if not all(name.isdecimal() and int(name) > 0 for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of positive whole numbers")
    return [int(name) for name in names]
