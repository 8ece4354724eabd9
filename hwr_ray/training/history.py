"""What a run's folder tells of its epochs so far."""

import json
from typing import Any

from hwr_ray.errors import UserError
from hwr_ray.files import storage

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"


def check_fresh(out: str) -> None:
    """Raises UserError where a run without a checkpoint has epochs: a new first one would replace its best bundle."""
    if history := read_history(out):
        raise UserError(f"{out} has {len(history)} epochs and no whole checkpoint to go on from: name another --out")


def read_history(out: str) -> list[dict[str, Any]]:
    """The metrics of a run's epochs so far, from its metrics.jsonl."""
    path = storage.join(out, METRICS)
    lines = storage.read_bytes(path).decode().splitlines() if storage.is_file(path) else []
    return [json.loads(line) for line in lines]
