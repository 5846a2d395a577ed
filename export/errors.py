"""The one exception that the exporter raises for anything a user can cause."""


class ExportError(Exception):
    """Says which file, node or tensor is wrong, what was expected and what came."""
