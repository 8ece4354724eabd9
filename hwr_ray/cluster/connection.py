"""Connection of a job to a Ray cluster, and the configuration of Ray for it."""

import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
from ray.exceptions import AuthenticationError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hwr_ray.cluster.address import find_ray, own_folder
from hwr_ray.cluster.progress import log_elapsed
from hwr_ray.cluster.resources import working_nodes
from hwr_ray.cluster.submission import submitted_environment
from hwr_ray.errors import UserError

log = logging.getLogger(__name__)

FORWARDED_PREFIXES = ("WANDB_", "AWS_", "RAY_ADDRESS")
"""Prefixes of the environment variables that are forwarded to the workers: settings and keys of the tracker and of an
object store, which must not appear on a command line, and the address, which Ray Train's cleanup process needs on a
machine with two clusters."""
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment of the workers: glibc keeps up to 4 GiB of the memory that a step or a partition frees, maps only blocks
above 32 MiB separately, and requests huge pages. By default it requests the same memory from the system repeatedly, in
pages of 4 KiB (benchmarks/results/processes.md)."""
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of the workers: PyTorch's threads sleep while they wait for each other. On a busy machine, spinning
threads delay the threads that they wait for: a step took four times as long (benchmarks/results/processes.md)."""
WORKER_VARIABLES = {"RAY_DATA_LOG_LEVEL": "WARNING", **ALLOCATOR, **THREADS}
"""Environment of all workers of a job. Variables that are already set take precedence."""
OWN_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Environment of a Ray that ends with the job: no usage statistics, and no process that watches for preemption of this
machine. Variables that are already set take precedence."""


def connect(*, with_dashboard: bool = False, show_workers: bool = True) -> None:
    """Joins the running cluster (RAY_ADDRESS, a submitted job, a local head), or starts one on this machine.

    Raises UserError if no cluster answers at RAY_ADDRESS, the cluster rejects this job, or Ray can't start here.

    `with_dashboard` concerns a cluster that ends with the job. Its dashboard takes a dozen processes and nobody looks
    at it, but a sweep queries it for its cleanup. `show_workers` forwards the output of workers to this process.
    """
    if not ray.is_initialized():
        sigterm_handler = signal.getsignal(signal.SIGTERM)
        address = find_ray()
        options = _start_options(with_dashboard) if address is None else _join_options(address)
        try:
            with log_elapsed("starting Ray" if address is None else f"joining Ray at {address}"):
                ray.init(**options, logging_level=logging.ERROR, log_to_driver=show_workers)
        except (ConnectionError, AuthenticationError) as error:
            raise UserError(
                f"the running Ray cluster can't be joined ({str(error).splitlines()[0]}): check that it runs and that "
                "RAY_ADDRESS, RAY_AUTH_MODE and the token are correct, or set RAY_ADDRESS=local to start another"
            ) from error
        except Exception as error:  # Ray raises no more specific exception
            if "timed out during startup" not in str(error):
                raise
            raise UserError(
                "Ray did not start within 30 s; this machine may be overloaded or out of memory: try again, or see "
                f"{options.get('_temp_dir')}/session_latest/logs/raylet.out"
            ) from error
        # Ray's handler ends the process immediately; the job's own handler deletes incomplete output.
        signal.signal(signal.SIGTERM, sigterm_handler)
    configure_data()
    resources, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
    log.info("on Ray: %s nodes, %g CPUs, %g GPUs", nodes, resources.get("CPU", 0), resources.get("GPU", 0))


def _start_options(with_dashboard: bool) -> dict[str, Any]:
    """Returns options that start a Ray that ends with this process.

    Its processes inherit the environment, so no keys are forwarded.
    """
    for name, value in (WORKER_VARIABLES | OWN_RAY).items():
        os.environ.setdefault(name, value)
    return {"address": "local", "include_dashboard": with_dashboard, "_temp_dir": own_folder()}


def _join_options(address: str) -> dict[str, Any]:
    variables = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED_PREFIXES)}
    variables |= {name: os.environ.get(name, value) for name, value in WORKER_VARIABLES.items()}
    # Variables that `ray job submit` set reach the workers anyway, and Ray rejects a second value.
    submitted = submitted_environment().get("env_vars") or {}
    return {
        "address": address,
        "runtime_env": {"env_vars": {name: value for name, value in variables.items() if name not in submitted}},
    }


def configure_data() -> None:
    """Configures Ray Data in this process, which executes data sets."""
    context = ray.data.DataContext.get_current()
    # By default Ray reports a stall only after half an hour.
    context.execution_no_progress_timeout_s = 300
    # Otherwise a worker's UserError arrives wrapped in an error that loses its cause.
    context.raise_original_map_exception = True
    # Progress bars on a terminal, a line every 10 s in a log.
    context.enable_rich_progress_bars, context.use_ray_tqdm = True, False
    context.print_on_execution_start = False
    # Otherwise Ray starts 32 processes for each read of a data set, only to read the footers of its files.
    os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")  # otherwise one more process, for usage statistics
    context.issue_detectors_config.detectors = []  # they log a process's memory every half minute
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__module__.startswith("ray."):  # not a handler of another program
            handler.addFilter(_is_progress)


def _is_progress(record: logging.LogRecord) -> bool:
    """Keeps warnings and progress. Drops errors, which are also raised: a user error needs no traceback."""
    message = record.getMessage()
    if message.startswith("Progress bars disabled"):  # the job shows its own
        return False
    return record.levelno == logging.WARNING or (message.startswith("Total Progress") and "0/?" not in message)


def rows_of(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Yields the rows of a data set as they arrive; `iter_rows` holds each block back until the next one arrives.

    Ray 2.60 leaves an idle thread behind for each data set that is read in this way.
    """
    tables: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for table in tables:
        yield from table.to_pylist()


def check_shared(*paths: str) -> None:
    """Raises UserError if a node that runs tasks does not see one of the paths. URIs are the same on all nodes."""
    local, this_node = [path for path in paths if "://" not in path], ray.get_runtime_context().get_node_id()
    nodes = [node for node in working_nodes() if node["NodeID"] != this_node]
    if not local or not nodes:
        return
    check: Any = ray.remote(num_cpus=0)(_missing)
    strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    results = ray.get([check.options(scheduling_strategy=strategy).remote(local) for strategy in strategies])
    for node, missing in zip(nodes, results, strict=True):
        if missing:
            where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            raise UserError(f"the node {where} does not see {missing[0]}: choose a path that all nodes share")


def _missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]  # noqa: PTH110
