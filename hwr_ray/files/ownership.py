"""Who writes an output folder, and whether a run that is there is the one asked for."""

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from hwr_ray.errors import UserError
from hwr_ray.files import storage

OWNER = ".owner"


class TakenOverError(UserError):
    """Another process writes the output folder now."""


@dataclass(frozen=True)
class OwnershipToken:
    """A file that names the process that writes `out`. The last process to take it owns the folder.

    Without it the same command, started twice, would mix two runs.
    """

    out: str
    path: str
    """The token's file."""
    token: str = field(default_factory=lambda: uuid4().hex)

    @classmethod
    def take(cls, out: str, *, folder: str | None = None) -> "OwnershipToken":
        """Makes this process the owner of `out`. The token lies in `folder`, by default in `out` itself."""
        token = cls(out, storage.join(folder or out, OWNER))
        storage.write_bytes(token.path, token.token.encode())
        return token

    def check(self) -> None:
        """Raises TakenOverError if another process has taken the folder since, or deleted the token."""
        try:
            is_own = storage.read_bytes(self.path).decode() == self.token
        except FileNotFoundError:
            is_own = False
        if not is_own:
            raise TakenOverError(f"another process began to write {self.out} and took over")


def difference(there: dict[str, Any], here: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns the first field in which two nested dictionaries differ, with its value in each; None if they are equal.

    The name of a nested field is joined with dots: `data.lines.train`.
    """
    flat_there, flat_here = _flat(there), _flat(here)
    for name in [*flat_there, *flat_here]:
        if flat_there.get(name) != flat_here.get(name):
            return name, flat_there.get(name), flat_here.get(name)
    return None


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:  # JSON has no tuples
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
