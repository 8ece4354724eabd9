"""Batch normalization with the statistics of all workers' lines, so that their number changes no result."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronized(module: nn.Module) -> nn.Module:
    """The module with its batch normalizations replaced by ones that see the batch of all workers; same parameters."""
    if next(module.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SyncedBatchNorm2d.of(child))
    return module


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """What torch.nn.SyncBatchNorm, which runs on GPUs only, is to nn.BatchNorm2d, for a CPU.

    The workers' means and variances are joined as in Chan, Golub, LeVeque 1983, equation 1.5; they may have different
    numbers of lines.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "SyncedBatchNorm2d":
        """With the parameters and statistics of another one."""
        synced = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        synced.weight, synced.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(synced, name, buffer)
        return synced.train(norm.training)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W), normalized over N, H and W of all workers."""
        if not self.training:
            return super().forward(features)
        x = features.float()
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        count = x.new_full((1,), x.numel() / x.shape[1])
        counts, means, variances = _GatherRows.apply(torch.cat([count, mean, variance])).split(
            [1, len(mean), len(mean)], dim=1
        )
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        self._remember(mean.detach(), variance.detach() * total / (total - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        mean, scale, bias = (of_channel[:, None, None] for of_channel in (mean, scale, self.bias))
        return torch.addcmul(bias, x - mean, scale).to(features.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        for kept, now in ((self.running_mean, mean), (self.running_var, variance)):
            if kept is not None:
                kept.lerp_(now, self.momentum)  # type: ignore[arg-type]
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class _GatherRows(torch.autograd.Function):
    """Each worker's row (C) as (workers, C); a row's gradient is the sum of what all workers make of it."""

    @staticmethod
    def forward(ctx: Any, row: Tensor) -> Tensor:
        rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, row)
        return torch.stack(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]
