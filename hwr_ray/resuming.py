"""Whether a run that is there is the one that is asked for."""

from typing import Any


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
