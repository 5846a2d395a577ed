"""From a path to a graph in canonical spelling: finds the files, checks them, loads lazily."""

from .canonical import canonicalise
from .load import load
from .source import Source, find_source

__all__ = ["Source", "canonicalise", "find_source", "load"]
