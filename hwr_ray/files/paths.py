"""Paths that come from a file of a user."""

import re


def is_safe(path: str) -> bool:
    """Whether a path from a CSV stays below its folder, whatever the operating system."""
    names = path.split("/")
    return (
        bool(path.strip())
        and "\\" not in path
        and "\0" not in path
        and not re.match(r"[A-Za-z]:|.*://", path)  # a drive, a URI
        and not path.startswith("/")
        and ".." not in names
    )
