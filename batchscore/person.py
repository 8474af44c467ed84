"""Who is at work."""

from __future__ import annotations

import getpass
import os
import socket

__all__ = ["person"]


def person() -> str:
    """Who is at work, and where: `ana@laptop`; by number where the user has no name, as in a container."""
    try:
        user = getpass.getuser()
    # Which of them depends on Python's version.
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
