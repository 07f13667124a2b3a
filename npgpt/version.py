"""The version of the package; it stands alone, so that everything may know it."""

__version__ = "0.2.0"
