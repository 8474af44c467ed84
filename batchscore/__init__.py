"""Score a scikit-learn model over a warehouse every night: chunked, exactly once, with the profile of what it saw."""

from __future__ import annotations

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    # Read when somebody asks: a help does without, and looking for an installed package takes a tenth of its time.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    globals()[name] = found = version("batchscore")
    return found
