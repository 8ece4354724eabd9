"""The Ray cluster that a job runs on: connecting to it, and what it must have before work starts."""

import logging
import math
import os
import signal
import sys
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
        ray.init(runtime_env={"env_vars": {**passed_on, **quiet}}, logging_level=logging.ERROR)
    # Ray leaves a handler that ends the process on the spot; this one lets half-written output be cleared away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    context = ray.data.DataContext.get_current()
    # Ray waits half an hour by default before it says that nothing moves.
    context.execution_no_progress_timeout_s = 300
    # Bars on a terminal, a line each 10 s in a log.
    context.enable_rich_progress_bars, context.use_ray_tqdm = True, False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        handler.addFilter(_tells_progress)
    resources = ray.cluster_resources()
    log.info("on Ray: %s nodes, %g CPUs, %g GPUs", len(ray.nodes()), resources["CPU"], resources.get("GPU", 0))


def _tells_progress(record: logging.LogRecord) -> bool:
    """Errors are left out: they are raised as well, and a user's mistake needs no traceback."""
    return record.levelno == logging.WARNING or record.getMessage().startswith("Total Progress")


def preflight(needs: Needs, *, remedy: str) -> None:
    """Raises UserError where the cluster can't hold what the job needs, with the remedy as its last words.

    Ray itself would wait, without a word, for nodes that never come.
    """
    have = ray.cluster_resources()
    for name, needed, there in (("CPUs", needs.cpus, have.get("CPU", 0)), ("GPUs", needs.gpus, have.get("GPU", 0))):
        if needed > there + 1e-6:
            raise UserError(f"this needs {needed:g} {name} and the cluster has {there:g}: {remedy}")


def threads_per_worker(num_workers: int) -> int:
    """CPU threads for this process, one of `num_workers` spread over the cluster's nodes; called in the process.

    More threads than cores is far worse than fewer: OpenMP's waiting made a training step six times slower.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    alive = sum(node["Alive"] for node in ray.nodes())
    return max(1, cores // math.ceil(num_workers / alive))
