"""Connects a job to a Ray cluster, and sets Ray up for it."""

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
from hwr_ray.cluster.progress import ten_seconds
from hwr_ray.cluster.resources import working_nodes
from hwr_ray.cluster.submission import submitted_environment
from hwr_ray.errors import UserError

log = logging.getLogger(__name__)

PASSED_ON = ("WANDB_", "AWS_", "RAY_ADDRESS")
"""How the names of environment variables begin that workers need: the settings and keys of the tracker and of an object
store, which must not stand on a command line, and for Ray Train's cleaner the address, where a machine has two
clusters."""
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment of the workers: glibc keeps up to 4 GiB of what a step or a part frees, maps only blocks above 32 MiB
apart, and asks for huge pages. Left to itself it asks the system for the same memory again and again, in pages of 4 KiB
(benchmarks/results/processes.md)."""
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of the workers: torch's threads sleep while they wait for one another. Beside other work, threads that
spin hold up those that they wait for: a step took four times as long (benchmarks/results/processes.md)."""
WORKER_VARIABLES = {"RAY_DATA_LOG_LEVEL": "WARNING", **ALLOCATOR, **THREADS}
"""Environment of all workers of a job, unless it is set."""
OWN_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Environment of a Ray that ends with the job, unless it is set: no report of its use to Ray's makers, and no process
that looks out for a notice that this machine will go."""


def connect(*, with_dashboard: bool = False, show_workers: bool = True) -> None:
    """Joins the running cluster (RAY_ADDRESS, a job, a local head), or starts one on this machine.

    Raises UserError where there is none to join at RAY_ADDRESS, it does not let this job in, or Ray can't start here.

    Of a cluster that is gone with the job nobody looks at the dashboard, which takes a dozen processes; but a sweep
    asks it for what it must clean up. What workers print is shown, unless it would be too much.
    """
    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)
        address = find_ray()
        options = _own_ray(with_dashboard) if address is None else _running_ray(address)
        try:
            with ten_seconds("starting Ray" if address is None else f"joining the Ray at {address}"):
                ray.init(**options, logging_level=logging.ERROR, log_to_driver=show_workers)
        except (ConnectionError, AuthenticationError) as error:
            raise UserError(
                f"the running Ray cluster can't be joined ({str(error).splitlines()[0]}): is it up, and are "
                "RAY_ADDRESS, RAY_AUTH_MODE and the token its own? RAY_ADDRESS=local starts another"
            ) from error
        except Exception as error:  # Ray raises nothing more telling
            if "timed out during startup" not in str(error):
                raise
            raise UserError(
                "Ray did not start within 30 s: is this machine very busy, or out of memory? Try again; "
                f"{options.get('_temp_dir')}/session_latest/logs/raylet.out says more"
            ) from error
        # Ray leaves a handler that ends the process on the spot; the job's own clears half-written output away.
        signal.signal(signal.SIGTERM, on_sigterm)
    configure_data()
    resources, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
    log.info("on Ray: %s nodes, %g CPUs, %g GPUs", nodes, resources.get("CPU", 0), resources.get("GPU", 0))


def _own_ray(with_dashboard: bool) -> dict[str, Any]:
    """What starts a Ray that ends with this process. Its processes inherit the environment: no key is passed on."""
    for name, value in (WORKER_VARIABLES | OWN_RAY).items():
        os.environ.setdefault(name, value)
    return {"address": "local", "include_dashboard": with_dashboard, "_temp_dir": own_folder()}


def _running_ray(address: str) -> dict[str, Any]:
    passed_on = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    passed_on |= {name: os.environ.get(name, value) for name, value in WORKER_VARIABLES.items()}
    # What `ray job submit` set reaches the workers by itself, and Ray refuses to be told twice.
    told = submitted_environment().get("env_vars") or {}
    return {
        "address": address,
        "runtime_env": {"env_vars": {name: value for name, value in passed_on.items() if name not in told}},
    }


def configure_data() -> None:
    """Sets up Ray Data in this process, which is to run data sets."""
    context = ray.data.DataContext.get_current()
    # Ray waits half an hour by default before it says that nothing moves.
    context.execution_no_progress_timeout_s = 300
    # Else a UserError of a worker comes wrapped in an error that loses its cause on the way.
    context.raise_original_map_exception = True
    # Bars on a terminal, a line each 10 s in a log.
    context.enable_rich_progress_bars, context.use_ray_tqdm = True, False
    context.print_on_execution_start = False
    # Else Ray starts 32 processes for each reading of a data set, and ends them once they know what its files hold.
    os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")  # else a process more, for statistics that nobody reads
    context.issue_detectors_config.detectors = []  # they tell every half minute that a process has some memory
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__module__.startswith("ray."):  # not what another program listens with
            handler.addFilter(_tells_progress)


def _tells_progress(record: logging.LogRecord) -> bool:
    """Errors are left out: they are raised as well, and a user's mistake needs no traceback."""
    message = record.getMessage()
    if message.startswith("Progress bars disabled"):  # where a job tells its own
        return False
    return record.levelno == logging.WARNING or (message.startswith("Total Progress") and "0/?" not in message)


def rows_of(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a data set as they come; `iter_rows` keeps each block back until there is another.

    Ray 2.60 leaves an idle thread behind for each data set read so.
    """
    tables: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for table in tables:
        yield from table.to_pylist()


def check_shared(*paths: str) -> None:
    """Raises UserError where a node that runs tasks does not see one of the paths. A URI is the same everywhere."""
    local, here = [path for path in paths if "://" not in path], ray.get_runtime_context().get_node_id()
    nodes = [node for node in working_nodes() if node["NodeID"] != here]
    if not local or not nodes:
        return
    look: Any = ray.remote(num_cpus=0)(_missing)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    found = ray.get([look.options(scheduling_strategy=place).remote(local) for place in places])
    for node, missing in zip(nodes, found, strict=True):
        if missing:
            where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            raise UserError(f"the node {where} does not see {missing[0]}: name a place that all nodes share")


def _missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]  # noqa: PTH110
