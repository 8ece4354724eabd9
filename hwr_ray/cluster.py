"""The Ray cluster that a job runs on: connecting to it, and what it must have before work starts."""

import logging
import os
from dataclasses import dataclass

import ray
import ray.data

from hwr_ray.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Needs:
    """CPUs and GPUs (Ray's logical ones) that a job holds at the same time."""

    cpus: float
    gpus: float = 0


def connect() -> None:
    """Joins the running cluster (RAY_ADDRESS, a job, a local head), or starts one on this machine."""
    if not ray.is_initialized():
        # Workers need the tracker's settings and token, which must not stand on a command line.
        passed_on = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
        quiet = {"RAY_DATA_LOG_LEVEL": "WARNING"}
        ray.init(runtime_env={"env_vars": {**passed_on, **quiet}}, logging_level=logging.WARNING)
    context = ray.data.DataContext.get_current()
    # Ray waits half an hour by default before it says that nothing moves.
    context.execution_no_progress_timeout_s = 300
    # One bar on a terminal, a line each 10 s in a log.
    context.enable_rich_progress_bars, context.use_ray_tqdm = True, False
    context.enable_operator_progress_bars = context.print_on_execution_start = False
    resources = ray.cluster_resources()
    log.info("on Ray: %s nodes, %g CPUs, %g GPUs", len(ray.nodes()), resources["CPU"], resources.get("GPU", 0))


def preflight(needs: Needs, *, remedy: str) -> None:
    """Raises UserError where the cluster can't hold what the job needs, with the remedy as its last words.

    Ray itself would wait, without a word, for nodes that never come.
    """
    have = ray.cluster_resources()
    for name, needed, there in (("CPUs", needs.cpus, have.get("CPU", 0)), ("GPUs", needs.gpus, have.get("GPU", 0))):
        if needed > there + 1e-6:
            raise UserError(f"this needs {needed:g} {name} and the cluster has {there:g}: {remedy}")


def threads_per_worker(num_workers: int) -> int:
    """CPU threads for each of `num_workers` processes spread over this cluster's CPUs; at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // num_workers)
