"""Ray Train's trainer for PyTorch, with torch imported only by the workers, not by the driver or the controller."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

HANG_SECONDS = 600
"""Timeout in seconds of a worker that waits for another one."""

LEAVE_SECONDS = 30
"""Seconds that workers have to leave their process group."""


class Trainer(DataParallelTrainer):
    """Works as ray.train.torch.TorchTrainer, whose modules and pickles import torch in every process that loads them.

    `has_cleaner` keeps Ray Train's PlacementGroupCleaner, which needs the dashboard. It removes the workers' placement
    group if the run dies while its job continues, as in a sweep. Ray itself removes the group when the job ends.
    """

    def __init__(self, *args: Any, has_cleaner: bool, **settings: Any) -> None:
        self.has_cleaner = has_cleaner
        super().__init__(*args, backend_config=TorchWorkers(), **settings)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        """Returns Ray Train's default callbacks without those that would start an unneeded process."""
        unneeded: list[type] = [] if self.has_cleaner else [PlacementGroupCleanerCallback]
        unneeded += [] if self.datasets else [DatasetsCallback]
        return [callback for callback in super()._create_default_callbacks() if type(callback) not in unneeded]


@dataclass
class TorchWorkers(BackendConfig):
    """Works as ray.train.torch.TorchConfig, without importing torch."""

    @property
    def backend_cls(self) -> type[Backend]:
        return TorchBackend

    @property
    def train_func_context(self) -> Any:
        return _on_device


class TorchBackend(Backend):
    """Joins the workers in a process group: NCCL with GPUs, Gloo otherwise."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
        size = len(worker_group)
        ray.get([worker_group.execute_single_async(n, _join, address, port, n, size, backend) for n in range(size)])

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        leaving = worker_group.execute_async(_leave, len(worker_group) > 1)
        ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_SECONDS)  # Ray then ends the workers


def _join(address: str, port: int, rank: int, size: int, backend: str) -> None:
    import os

    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, size, "env://", timeout_s=HANG_SECONDS)


def _leave(is_joined: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=is_joined)


@contextmanager
def _on_device() -> Iterator[None]:
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield
