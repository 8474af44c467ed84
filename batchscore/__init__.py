"""Score a scikit-learn model over a warehouse every night: chunked, exactly once, with the profile of what it saw."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("batchscore")
