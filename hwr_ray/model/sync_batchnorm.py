"""Batch normalization over the batches of all workers, so that the worker count does not change the result."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronized(module: nn.Module) -> nn.Module:
    """Returns the module with its batch normalization layers replaced by synchronized ones with the same parameters."""
    if next(module.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SyncedBatchNorm2d.of(child))
    return module


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Synchronized batch normalization on CPUs; torch.nn.SyncBatchNorm supports GPUs only.

    The workers' means and variances are combined as in Chan, Golub, LeVeque 1983, equation 1.5. Workers may have
    batches of different sizes.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "SyncedBatchNorm2d":
        """Returns a synchronized layer with the parameters and statistics of `norm`."""
        synced = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        synced.weight, synced.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(synced, name, buffer)
        return synced.train(norm.training)

    def forward(self, features: Tensor) -> Tensor:
        """Normalizes features (N, C, H, W) over N, H and W of all workers."""
        if not self.training:
            return super().forward(features)
        normalized, mean, variance, total = _Normalize.apply(features, self.weight, self.bias, self.eps)
        self._update_running_stats(mean, variance * total / (total - 1))
        return normalized

    def _update_running_stats(self, mean: Tensor, variance: Tensor) -> None:
        for running, current in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None:
                running.lerp_(current, self.momentum)  # type: ignore[arg-type]
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class _Normalize(torch.autograd.Function):
    """Runs PyTorch's kernels locally and exchanges the statistics between workers."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        _, mean, inverse = torch.native_batch_norm(features, weight, bias, None, None, True, 0.0, eps)
        count = mean.new_full((1,), features.numel() / features.shape[1])
        row = torch.cat([count, mean, inverse**-2 - eps])
        rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, row)
        counts, means, variances = torch.stack(rows).split([1, len(mean), len(mean)], dim=1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        normalized = torch.batch_norm(features, weight, bias, mean, variance, False, 0.0, eps, False)
        ctx.save_for_backward(features, weight, mean, variance, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)
        return normalized, mean, variance, total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Implements Ioffe and Szegedy 2015, section 3, with the sums over the batches of all workers."""
        features, weight, mean, variance, total = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        grad_features, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_output, features, weight, mean, variance, mean, inverse, False, ctx.eps, [True, True, True]
        )  # treats mean and variance as constants; `slope` and `shift` add their gradients
        sums = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(sums)
        slope = -weight * inverse**2 * sums[1] / total
        shift = -weight * inverse * sums[0] / total - slope * mean
        slope, shift = (per_channel[:, None, None].to(features.dtype) for per_channel in (slope, shift))
        return grad_features.add_(torch.addcmul(shift, features, slope)), grad_weight, grad_bias, None
