"""The version of jaxdiff, in one place: read by packaging and written into every run directory."""

__version__ = "0.1.0"
