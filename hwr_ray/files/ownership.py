"""Whether a run that is there is the one that is asked for, and whether it is still this process's."""

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from hwr_ray.errors import UserError
from hwr_ray.files import storage


class TakenOverError(UserError):
    """Another process writes a folder now."""


@dataclass(frozen=True)
class Claim:
    """That whoever made it last writes the folder. Else the same command, started twice, would mix two runs."""

    folder: str
    token: str = field(default_factory=lambda: uuid4().hex)

    @property
    def path(self) -> str:
        return storage.join(self.folder, ".owner")

    def make(self) -> "Claim":
        storage.write_bytes(self.path, self.token.encode())
        return self

    def check(self) -> None:
        """Raises TakenOverError where another process made a claim since."""
        if storage.read_bytes(self.path).decode() != self.token:
            raise TakenOverError(f"another process began to write {self.folder} and took over")


def difference(there: dict[str, Any], here: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field, with dots for what lies within, in which two sets of facts differ, and its value in each."""
    flat_there, flat_here = _flat(there), _flat(here)
    for name in [*flat_there, *flat_here]:
        if flat_there.get(name) != flat_here.get(name):
            return name, flat_there.get(name), flat_here.get(name)
    return None


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:  # JSON has no tuples
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
