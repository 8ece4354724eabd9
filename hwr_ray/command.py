"""The command that started this process, as the user would type it."""

import shlex
import sys
from pathlib import Path


def program() -> list[str]:
    """Returns the words of the command before the job's own arguments."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":  # python -m hwr_ray
        return ["python", "-m", script.parent.name]
    return ["python", sys.argv[0]] if script.suffix == ".py" else [script.name]


def command() -> str:
    """Returns the whole command line."""
    return shlex.join([*program(), *sys.argv[1:]])
