"""The Ray cluster that a job runs on: connecting to it, what it must have before work starts, how results come back."""

import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from joblib import cpu_count
from ray.exceptions import AuthenticationError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hwr_ray.cluster.address import find_ray, own_folder
from hwr_ray.cluster.progress import ten_seconds
from hwr_ray.cluster.submission import submitted_environment
from hwr_ray.errors import UserError

log = logging.getLogger(__name__)

TOLERANCE = 1e-6
"""Of sums of fractions of CPUs."""
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
RELEASE_SECONDS = 1
"""In which Ray learns that a job of this process gave back what it held."""
WAIT_SECONDS = 10
"""Between two lines that say for which nodes a job waits."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """CPUs and GPUs (Ray's logical ones) that a job holds at the same time."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float = 0
    other_cpus: float
    """For what feeds the workers."""


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


def preflight(needs: Needs, *, wait_minutes: float = 0) -> None:
    """Raises UserError where the cluster can't hold what the job needs, after so many minutes in which nodes may come
    and an autoscaler is asked for them; says so where others hold it now.

    Ray itself would wait, without a word, for nodes that never come.
    """
    try:
        _check(needs)
    except UserError as error:
        if not wait_minutes:
            raise
        _wait_for_nodes(needs, str(error), 60 * wait_minutes)
        _check(needs, told=True)  # what was held to wait may not be free again yet


def _wait_for_nodes(needs: Needs, reason: str, seconds: float) -> None:
    """Waits until the cluster holds all that is needed at once, or the time is over."""
    worker = {"CPU": needs.cpus_per_worker, "GPU": needs.gpus_per_worker}
    wanted = [*[worker] * needs.num_workers, {"CPU": needs.other_cpus}]
    bundles = [{name: number for name, number in bundle.items() if number} for bundle in wanted]
    # An autoscaler brings nodes for what waits; unlike request_resources, this ends with the job.
    group = placement_group([bundle for bundle in bundles if bundle])
    deadline = time.monotonic() + seconds
    try:
        while (left := deadline - time.monotonic()) > 0 and not group.wait(math.ceil(min(WAIT_SECONDS, left))):
            log.info("%s: waiting for nodes, %.0f minutes at most", reason.split(":")[0], left / 60)
    finally:
        remove_placement_group(group)


def _check(needs: Needs, *, told: bool = False) -> None:
    remedy = "lower --num-workers or --cpus-per-worker, or add nodes"
    cpus = needs.num_workers * needs.cpus_per_worker + needs.other_cpus
    gpus = needs.num_workers * needs.gpus_per_worker
    have = ray.cluster_resources()
    for name, key, needed in (("CPUs", "CPU", cpus), ("GPUs", "GPU", gpus)):
        if needed > have.get(key, 0) + TOLERANCE:
            raise UserError(f"this needs {needed:g} {name} and the cluster has {have.get(key, 0):g}: {remedy}")
        if told or needed <= _free(key) + TOLERANCE:
            continue
        time.sleep(RELEASE_SECONDS)
        if needed > (free := _free(key)) + TOLERANCE:
            log.warning("this needs %g %s and %g are free: it waits for other jobs", needed, name, free)
    places = sum(_places(node["Resources"], needs) for node in working_nodes())
    if places < needs.num_workers:
        raise UserError(f"the cluster's nodes hold {places} of the {needs.num_workers} workers at once: {remedy}")


def _free(resource: str) -> float:
    return ray.available_resources().get(resource, 0)


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


def room_for(needs: Needs) -> int:
    """How many jobs with these needs the cluster holds at the same time, wherever their parts come to lie.

    Each may need a whole CPU for a while, to list files (`other_cpus` is what it holds always). One is free on some
    node as long as all jobs together hold no more than all nodes have beyond one CPU each.
    """
    nodes = [node["Resources"] for node in working_nodes()]
    return jobs_at_once([node["CPU"] for node in nodes], [node.get("GPU", 0) for node in nodes], needs)


def jobs_at_once(cpus: list[float], gpus: list[float], needs: Needs) -> int:
    """See `room_for`; `cpus` and `gpus` are those of each node."""
    held = needs.other_cpus + needs.num_workers * needs.cpus_per_worker
    places = (sum(max(0.0, count - 1) for count in cpus) + TOLERANCE) // held
    # A worker computes with a core at least, whatever share of one it says it needs.
    places = min(places, max(1, sum(cpus) // needs.num_workers))
    if needs.gpus_per_worker:
        places = min(places, sum(gpus) // (needs.num_workers * needs.gpus_per_worker))
    return int(places)


def _places(resources: dict[str, float], needs: Needs) -> int:
    """How many workers fit on a node at the same time."""
    places = (resources.get("CPU", 0) + TOLERANCE) // needs.cpus_per_worker
    if needs.gpus_per_worker:
        places = min(places, (resources.get("GPU", 0) + TOLERANCE) // needs.gpus_per_worker)
    return int(places)


def working_nodes() -> list[dict]:
    """Nodes that run tasks: a head with no CPU to give is none."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]


def per_node(number: int) -> int:
    """How many of so many processes a node has at most, where they are spread evenly over the nodes that run tasks."""
    return math.ceil(number / len(working_nodes()))


def threads_among(num_processes: int) -> int:
    """CPU threads for this process, one of so many that share its node; called in the process.

    More threads than cores is far worse than fewer: OpenMP's waiting made a training step six times slower.
    """
    return max(1, cpu_count() // num_processes)
