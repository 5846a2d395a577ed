"""The error that users are meant to read."""


class FdppError(RuntimeError):
    """Bad input, or a machine that lacks something. The message names what is wrong, what was expected and what came;
    command-line tools print it without a traceback."""
