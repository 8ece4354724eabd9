"""The command that started this process, as its user would type it."""

import shlex
import sys
from pathlib import Path


def program() -> list[str]:
    """The words before a job's own arguments."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":  # python -m hwr_ray
        return ["python", "-m", script.parent.name]
    return ["python", sys.argv[0]] if script.suffix == ".py" else [script.name]


def command() -> str:
    """The whole command line."""
    return shlex.join([*program(), *sys.argv[1:]])
