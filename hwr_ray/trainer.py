"""Ray Train's trainer for the one run of a job."""

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback


class SingleRunTrainer(TorchTrainer):
    """Without the process that frees the workers' place where the run ends and its job goes on.

    Ray itself frees it where the job ends. The process would ask a dashboard, which a job's own Ray then needs, too.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
