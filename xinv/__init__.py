"""xinv measures how much an explainable image model leaks about the private images behind its decisions."""

__version__ = "0.1.0"
