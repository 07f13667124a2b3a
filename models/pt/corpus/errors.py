"""The one error of these steps: what is wrong with an input, in one line."""


class SourceError(Exception):
    """A source is missing, is not what the table says, or cannot be read."""
