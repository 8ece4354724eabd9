"""CPUs, GPUs and nodes that a job needs, and the wait for them."""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import ray
from joblib import cpu_count
from ray.util.placement_group import placement_group, remove_placement_group

from hwr_ray.errors import UserError

log = logging.getLogger(__name__)

TOLERANCE = 1e-6
"""Tolerance of sums of fractional CPUs."""
RELEASE_SECONDS = 1
"""Seconds until Ray registers that a job of this process has released its resources."""
WAIT_SECONDS = 10
"""Seconds between log lines while a job waits for nodes."""


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    wait_minutes: float = 0
    """Minutes to wait for nodes (requested from the autoscaler). With 0 the job fails if the cluster is too small."""

    def __post_init__(self) -> None:
        if self.wait_minutes < 0:
            raise UserError(f"--wait-minutes must not be negative, not {self.wait_minutes:g}")


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(ClusterSettings):
    use_gpu: bool = False
    """Use one GPU per worker."""
    cpus_per_worker: float = 0.5
    """Logical CPUs that Ray reserves for each worker (not a limit on threads)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cpus_per_worker <= 0:
            raise UserError(f"--cpus-per-worker must be positive, not {self.cpus_per_worker:g}")

    @property
    def gpus_per_worker(self) -> int:
        return int(self.use_gpu)

    @property
    def device(self) -> str:
        """The name of a worker's device in PyTorch."""
        return "cuda" if self.use_gpu else "cpu"

    @property
    def options(self) -> dict[str, Any]:
        """Resources of a Ray task or actor, as arguments of `options`."""
        return {"num_cpus": self.cpus_per_worker, "num_gpus": self.gpus_per_worker}

    def needs(self, num_workers: int, *, other_cpus: float) -> "Needs":
        """Returns what `num_workers` workers need, plus `other_cpus` for the tasks that feed them."""
        return Needs(
            num_workers=num_workers,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
            other_cpus=other_cpus,
        )


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Ray's logical CPUs and GPUs that a job holds at the same time."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float = 0
    other_cpus: float
    """CPUs for the tasks that feed the workers."""


def preflight(needs: Needs, *, wait_minutes: float = 0) -> None:
    """Raises UserError if the cluster is too small for the job, after waiting `wait_minutes` for missing nodes.

    Missing nodes are requested from the autoscaler. Logs a warning if other jobs hold the resources. Ray itself would
    silently wait for nodes that never come.
    """
    try:
        _check(needs)
    except UserError as error:
        if not wait_minutes:
            raise
        _wait_for_nodes(needs, str(error), 60 * wait_minutes)
        _check(needs, warn_if_busy=False)  # the resources held during the wait may not be free yet


def _wait_for_nodes(needs: Needs, reason: str, seconds: float) -> None:
    """Waits until the cluster can hold everything that the job needs at once, for at most `seconds`."""
    worker = {"CPU": needs.cpus_per_worker, "GPU": needs.gpus_per_worker}
    wanted = [*[worker] * needs.num_workers, {"CPU": needs.other_cpus}]
    bundles = [{name: number for name, number in bundle.items() if number} for bundle in wanted]
    # The autoscaler adds nodes for a pending group. Unlike request_resources, the group ends with the job.
    group = placement_group([bundle for bundle in bundles if bundle])
    deadline = time.monotonic() + seconds
    try:
        while (left := deadline - time.monotonic()) > 0 and not group.wait(math.ceil(min(WAIT_SECONDS, left))):
            log.info("%s: waiting for nodes, at most %.0f minutes", reason.split(":")[0], left / 60)
    finally:
        remove_placement_group(group)


def _check(needs: Needs, *, warn_if_busy: bool = True) -> None:
    remedy = "lower --num-workers or --cpus-per-worker, or add nodes"
    cpus = needs.num_workers * needs.cpus_per_worker + needs.other_cpus
    gpus = needs.num_workers * needs.gpus_per_worker
    total = ray.cluster_resources()
    for name, key, needed in (("CPUs", "CPU", cpus), ("GPUs", "GPU", gpus)):
        if needed > total.get(key, 0) + TOLERANCE:
            raise UserError(f"this needs {needed:g} {name} and the cluster has {total.get(key, 0):g}: {remedy}")
        if not warn_if_busy or needed <= _free(key) + TOLERANCE:
            continue
        time.sleep(RELEASE_SECONDS)
        if needed > (free := _free(key)) + TOLERANCE:
            log.warning("this needs %g %s and %g are free: waiting for other jobs", needed, name, free)
    places = sum(_places(node["Resources"], needs) for node in working_nodes())
    if places < needs.num_workers:
        raise UserError(f"the cluster's nodes can hold {places} of the {needs.num_workers} workers at once: {remedy}")


def _free(resource: str) -> float:
    return ray.available_resources().get(resource, 0)


def room_for(needs: Needs) -> int:
    """Returns how many jobs with these needs the cluster can hold at the same time, wherever Ray places their parts.

    Each job temporarily needs a whole CPU to list files; `other_cpus` is what it holds permanently. Some node has a
    whole CPU free as long as all jobs together hold at most what the nodes have beyond one CPU each.
    """
    nodes = [node["Resources"] for node in working_nodes()]
    return jobs_at_once([node["CPU"] for node in nodes], [node.get("GPU", 0) for node in nodes], needs)


def jobs_at_once(cpus: list[float], gpus: list[float], needs: Needs) -> int:
    """Returns the result of `room_for`, given the `cpus` and `gpus` of each node."""
    held = needs.other_cpus + needs.num_workers * needs.cpus_per_worker
    places = (sum(max(0.0, count - 1) for count in cpus) + TOLERANCE) // held
    # A worker uses at least one core, whatever fraction of one it requests.
    places = min(places, max(1, sum(cpus) // needs.num_workers))
    if needs.gpus_per_worker:
        places = min(places, sum(gpus) // (needs.num_workers * needs.gpus_per_worker))
    return int(places)


def _places(resources: dict[str, float], needs: Needs) -> int:
    """Returns how many workers fit on a node at the same time."""
    places = (resources.get("CPU", 0) + TOLERANCE) // needs.cpus_per_worker
    if needs.gpus_per_worker:
        places = min(places, (resources.get("GPU", 0) + TOLERANCE) // needs.gpus_per_worker)
    return int(places)


def working_nodes() -> list[dict]:
    """Returns the nodes that run tasks, which excludes a head without CPUs."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]


def per_node(number: int) -> int:
    """Returns the most processes on one node if `number` processes are spread evenly over the nodes that run tasks."""
    return math.ceil(number / len(working_nodes()))


def threads_among(num_processes: int) -> int:
    """Returns the number of CPU threads for this process, one of `num_processes` that share its node.

    Call it in the process itself. More threads than cores are far worse than fewer: OpenMP's waiting made a training
    step six times slower.
    """
    return max(1, cpu_count() // num_processes)
