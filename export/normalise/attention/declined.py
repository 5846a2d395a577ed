"""How a dialect says that it leaves an attention as it is."""


class Declined(Exception):
    """Why; becomes the report's reason."""
