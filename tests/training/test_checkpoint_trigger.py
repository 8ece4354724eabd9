"""Tests when workers poll, save and stop, with a fake clock and channel."""

from types import SimpleNamespace

import pytest
import torch

from hwr_ray.training import checkpoint_trigger as module
from hwr_ray.training.checkpoint_trigger import CheckpointTrigger, Stopwatch
from hwr_ray.training.dataloader import WorkerShard


class World:
    """A fake clock, a preemption notice, and a channel that may ask the run to stop."""

    def __init__(self, monkeypatch):
        self.now, self.is_preempted, self.stop, self.sent = 100.0, False, False, []
        self.send = SimpleNamespace(remote=self._send)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module.ray, "get", lambda answer: answer)
        monkeypatch.setattr(module.ray.train, "get_preemption_info", lambda: "soon" if self.is_preempted else None)

    def _send(self, message):
        self.sent.append(message)
        return self.stop

    def trigger(self, *, minutes=10.0, channel=True):
        return CheckpointTrigger(WorkerShard(0, 1), torch.device("cpu"), self if channel else None, minutes=minutes)

    def steps(self, trigger, number, *, seconds):
        """Returns the decisions of the polls after each of `number` steps."""
        decisions = []
        for step in range(number):
            self.now += seconds
            decisions.append(trigger.poll(step))
        return decisions


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_the_first_step_polls_and_then_one_about_every_two_seconds(world):
    world.steps(world.trigger(), 101, seconds=0.1)
    assert [message["lines"] for message in world.sent] == [0, 20, 40, 60, 80, 100]


def test_an_epoch_begins_with_a_look_however_long_the_gap_was(world):
    trigger = world.trigger()
    world.steps(trigger, 3, seconds=0.001)
    assert len(world.sent) == 1
    trigger.begin_epoch()
    world.steps(trigger, 1, seconds=0.001)
    assert len(world.sent) == 2


def test_each_slow_step_polls(world):
    assert len(world.steps(world.trigger(), 5, seconds=30)) == len(world.sent) == 5


def test_a_run_saves_when_its_minutes_are_over_and_not_again_at_once(world):
    saves = [save for save, _ in world.steps(world.trigger(minutes=1), 200, seconds=1)]
    times = [second for second, save in enumerate(saves, 1) if save]
    assert len(times) == 3
    assert all(60 < later - earlier <= 63 for earlier, later in zip([0, *times], times, strict=False))


def test_while_a_node_says_that_it_will_go_there_is_a_save_every_15_seconds(world):
    world.is_preempted = True
    saves = [save for save, _ in world.steps(world.trigger(), 61, seconds=1)]
    assert sum(saves) in (3, 4)


def test_a_run_stops_when_it_is_asked_to_and_one_that_nobody_follows_goes_on(world):
    assert world.steps(world.trigger(), 1, seconds=1) == [(False, False)]
    world.stop = True
    assert world.steps(world.trigger(), 1, seconds=1) == [(False, True)]
    assert world.steps(world.trigger(channel=False), 1, seconds=1) == [(False, False)]


def test_the_watch_tells_waiting_from_all_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def items():
        for item in "ab":
            now[0] += 3
            yield item

    watch, iterator = Stopwatch(), items()
    assert watch.waiting(iterator) == "a"
    now[0] += 5
    assert watch.lap() == (8, 3)
    assert [watch.waiting(iterator), watch.waiting(iterator)] == ["b", None]
    assert watch.lap() == (3, 3)
