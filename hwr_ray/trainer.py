"""Ray Train's trainer for the one run of a job."""

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback


class SingleRunTrainer(TorchTrainer):
    """Omits Ray Train's PlacementGroupCleaner, which needs the dashboard.

    It removes the workers' placement group if the run dies and its job goes on, as in a sweep. Ray itself removes the
    group when the job ends.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
