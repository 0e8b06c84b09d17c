"""Which training examples most influenced this prediction? The front door: what a user imports."""

from importlib.metadata import version

__version__ = version("trackstar")
