"""The environment of a job started by `ray job submit`."""

import json
import os
from typing import Any

from hwr_ray.errors import UserError
from hwr_ray.files import storage


def submitted_environment() -> dict[str, Any]:
    """Returns the runtime environment of this process; empty unless `ray job submit` started it."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return job.get("runtime_env") or {}


def check_lasting(out: str | None) -> None:
    """Raises UserError if a submitted job would write to its working folder, a copy that Ray deletes."""
    if out and submitted_environment().get("working_dir") and not storage.is_absolute(out):
        raise UserError(
            f"--out {out} would be lost: Ray deletes a submitted job's folder; choose an absolute path or a URI"
        )
