"""Compares the statistics, gradients and losses of several workers with those of one, in processes without Ray."""

import copy
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import TINY_CANVAS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hwr_ray.model.architecture import ModelSettings
from hwr_ray.model.sync_batchnorm import synchronized
from hwr_ray.recognition.bundle import new_model
from hwr_ray.text.codec import Codec
from hwr_ray.training import step as optimization
from hwr_ray.training.dataloader import WorkerShard
from hwr_ray.training.step import TrainState, new_ema, train_step

pytestmark = pytest.mark.slow  # starts processes that import torch

LABELS = [[1], [2, 2], [3, 1, 2], [1, 1, 1], [2], [3], [1, 2, 3], [2, 1]]
STEPS, MOST_PROCESSES = 6, 4


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A function that runs `work(shard, *arguments)` in `world_size` processes and returns the result of rank 0.

    The processes are reused by later calls.
    """
    with ExitStack() as stack:
        spawned = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(MOST_PROCESSES)]
        ranks = [stack.enter_context(process) for process in spawned]

        def call(work, world_size, *arguments):
            rendezvous = str(tmp_path_factory.mktemp("rendezvous") / "file")
            futures = [
                process.submit(_run, rank, world_size, rendezvous, work, arguments)
                for rank, process in enumerate(ranks[:world_size])
            ]
            first, *_ = [future.result() for future in futures]
            return first

        yield call


def _run(rank, world_size, rendezvous, work, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size)
    try:
        return work(WorkerShard(rank, world_size), *arguments)
    finally:
        dist.destroy_process_group()


def normalize(shard, sizes):
    """Returns outputs, gradients and statistics for two batches, which are split among the workers by `sizes`."""
    torch.manual_seed(1)
    norm = nn.Sequential(nn.BatchNorm2d(3))
    with torch.no_grad():
        norm[0].weight.copy_(drawn(3, seed=2) + 0.5)
        norm[0].bias.copy_(drawn(3, seed=3))
    if shard.world_size > 1:
        synchronized(norm)
        assert type(norm[0]) is not nn.BatchNorm2d
    start = sum(sizes[: shard.rank])
    rows = slice(start, start + sizes[shard.rank])
    results = []
    for seed in (4, 5):
        whole = 5 + 3 * drawn(7, 3, 2, 5, seed=seed)
        x = whole[rows].clone().requires_grad_()
        y = norm(x)
        (y * drawn(7, 3, 2, 5, seed=6)[rows]).sum().backward()
        results += _gathered(shard, y.detach()), _gathered(shard, x.grad)
    gradients = torch.stack([norm[0].weight.grad, norm[0].bias.grad])
    if shard.world_size > 1:
        dist.all_reduce(gradients)
    return [*results, gradients, norm[0].running_mean, norm[0].running_var, norm[0].num_batches_tracked]


def _gathered(shard, rows):
    if shard.world_size == 1:
        return rows
    parts = [None] * shard.world_size
    dist.all_gather_object(parts, rows)
    return torch.cat(parts)


@pytest.mark.parametrize("sizes", [(3, 4), (1, 6), (2, 2, 3)])
def test_batch_normalization_of_workers_is_that_of_the_whole_batch(together, sizes):
    alone, shared = normalize(WorkerShard(0, 1), [7]), together(normalize, len(sizes), sizes)
    for one, many in zip(alone, shared, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-4)


def test_normalization_that_reads_is_that_of_its_running_statistics():
    norm = nn.Sequential(nn.BatchNorm2d(3))
    norm(drawn(4, 3, 2, 2))
    synced = synchronized(copy.deepcopy(norm)).eval()
    torch.testing.assert_close(synced(drawn(2, 3, 2, 2, seed=1)), norm.eval()(drawn(2, 3, 2, 2, seed=1)))
    assert list(synced.state_dict()) == list(norm.state_dict())


def learn(shard):
    """Trains on one batch, reordered in each step; returns losses, gradient norms, EMA weights and a variance."""
    torch.manual_seed(0)
    optimization.has_bfloat16 = lambda device: False  # in a separate process, or restored by the test
    codec, settings = Codec("ABC"), ModelSettings(conv_widths=(4, 4, 8, 8), gru_size=8, dropout=0)
    model = new_model(settings, codec, TINY_CANVAS)
    ema = new_ema(model, 0.5)
    parallel = model
    if shard.world_size > 1:
        parallel = DistributedDataParallel(synchronized(model))
        parallel.broadcast_buffers = False
    state = TrainState(model, ema, torch.optim.AdamW(model.parameters(), lr=1e-2))
    ink, figures = drawn(8, 1, TINY_CANVAS.height, TINY_CANVAS.width), []
    for step in range(STEPS):
        order = np.random.default_rng(step).permutation(8)[shard.of(8)]
        weight = shard.world_size / 8
        labels = [LABELS[i] for i in order]
        loss, norm = train_step(state, parallel, ink[order], labels, shortcut_weight=0.1, line_weight=weight)
        ema.update_parameters(model)
        if shard.world_size > 1:
            dist.all_reduce(loss)
        figures.append([loss.item() / shard.world_size, norm.item()])
    return (
        torch.tensor(figures),
        torch.cat([p.flatten() for p in ema.parameters()]),
        ema.module.convolutions[1].running_var,
    )


@pytest.mark.parametrize("world_size", [2, 3, MOST_PROCESSES])
def test_workers_with_the_same_global_batch_learn_the_same(together, world_size, monkeypatch):
    monkeypatch.setattr(optimization, "has_bfloat16", optimization.has_bfloat16)
    (figures, weights, variance), (*others,) = learn(WorkerShard(0, 1)), together(learn, world_size)
    assert figures[-1, 0] < figures[0, 0]  # it learns
    torch.testing.assert_close(others[0], figures, rtol=1e-3, atol=0)
    assert (others[1] - weights).norm() < 1e-3 * weights.norm()
    torch.testing.assert_close(others[2], variance, rtol=1e-3, atol=1e-6)
