"""What differs for a job that `ray job submit` started."""

import json
import os
from typing import Any

from hwr_ray.errors import UserError
from hwr_ray.files import storage


def submitted_environment() -> dict[str, Any]:
    """The runtime environment that Ray gave this process; empty where it was started otherwise."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return job.get("runtime_env") or {}


def check_lasting(out: str | None) -> None:
    """Raises UserError where a job would write to its working folder, a copy that Ray deletes."""
    if out and submitted_environment().get("working_dir") and not storage.is_absolute(out):
        raise UserError(
            f"--out {out} would be lost: Ray deletes a submitted job's folder; name an absolute path or a URI"
        )
