"""Ownership of an output folder, and comparison of its run with the requested one."""

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from hwr_ray.errors import UserError
from hwr_ray.files import storage

OWNER = ".owner"
"""Name of the file that identifies the owner of a folder."""


class TakenOverError(UserError):
    """Another process has taken over the output folder."""


@dataclass(frozen=True)
class OwnershipToken:
    """A file that identifies the process that writes `out`. The last process to take it owns the folder.

    Without it, two processes started by the same command would mix their outputs.
    """

    out: str
    path: str
    """Path of the token's file."""
    token: str = field(default_factory=lambda: uuid4().hex)

    @classmethod
    def take(cls, out: str, *, folder: str | None = None) -> "OwnershipToken":
        """Makes this process the owner of `out`. Writes the token to `folder`, by default to `out` itself."""
        token = cls(out, storage.join(folder or out, OWNER))
        storage.write_bytes(token.path, token.token.encode())
        return token

    def check(self) -> None:
        """Raises TakenOverError if another process has taken the folder or deleted the token."""
        try:
            is_own = storage.read_bytes(self.path).decode() == self.token
        except FileNotFoundError:
            is_own = False
        if not is_own:
            raise TakenOverError(f"another process took over {self.out}: run one job at a time in a folder")


def difference(existing: dict[str, Any], requested: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns the first field in which two nested dictionaries differ, with its value in each; None if they are equal.

    Names of nested fields are joined with dots: `data.lines.train`.
    """
    old, new = _flat(existing), _flat(requested)
    for name in [*old, *new]:
        if old.get(name) != new.get(name):
            return name, old.get(name), new.get(name)
    return None


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:  # JSON has no tuples
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
