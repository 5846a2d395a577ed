"""From a path to a graph in canonical spelling: finds the files, checks them, loads lazily, rewrites the dialects."""

from .attention import to_grouped_query
from .canonical import canonicalise
from .context_length import context_length
from .load import load
from .norms import fuse_norms
from .source import Source, find_source
from .well_formed import require_well_formed

__all__ = [
    "Source",
    "canonicalise",
    "context_length",
    "find_source",
    "fuse_norms",
    "load",
    "require_well_formed",
    "to_grouped_query",
]
