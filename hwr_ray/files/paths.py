"""A check of paths that come from a user's file."""

import re


def is_safe(path: str) -> bool:
    """Returns whether a path from a CSV stays below its folder on every operating system."""
    names = path.split("/")
    return (
        bool(path.strip())
        and "\\" not in path
        and "\0" not in path
        and not re.match(r"[A-Za-z]:|.*://", path)  # a drive or a URI
        and not path.startswith("/")
        and ".." not in names
    )
