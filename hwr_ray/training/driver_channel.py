"""Messages between a training run and the driver that started it."""

import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hwr_ray.cluster.progress import Progress

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class DriverChannel:
    """A mailbox on the driver's node. The worker of rank 0 sends to it; the driver receives from it."""

    def __init__(self) -> None:
        self.messages, self.stop_requested = list[dict[str, Any]](), False

    def send(self, message: dict[str, Any]) -> bool:
        """Queues a message: the number of `lines` done, or a `text` to log. Returns whether the run should stop."""
        self.messages.append(message)
        return self.stop_requested

    def receive(self) -> list[dict[str, Any]]:
        """Returns the messages since the last call."""
        messages, self.messages = self.messages, []
        return messages

    def request_stop(self) -> None:
        self.stop_requested = True


def new_channel() -> Any:
    """Returns a DriverChannel on this process's own node, so that the loss of another node does not end it."""
    on_this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return DriverChannel.options(scheduling_strategy=on_this_node).remote()  # type: ignore[attr-defined]


def follow(channel: Any, fit: Callable[[], Any], *, total: int, done: int) -> Any:
    """Calls `fit` in a thread, shows its workers' progress through `total` lines, starting at `done`, and returns its
    result.

    The first Ctrl-C or SIGTERM asks the workers to stop after a checkpoint; a second one ends this process. Raises the
    exception of `fit`, or SystemExit with the signal's status if the run was stopped.
    """
    outcome: dict[str, Any] = {}
    has_ended = threading.Event()  # an interrupted Thread.join reports the thread as ended

    def call() -> None:
        try:
            outcome["result"] = fit()
        except BaseException as error:
            outcome["error"] = error
        has_ended.set()

    threading.Thread(target=call, daemon=True).start()
    status = None
    with Progress("lines", lambda: total, done=done) as progress:
        while True:
            try:
                is_over = has_ended.is_set()
                _show(ray.get(channel.receive.remote()), progress)
                if is_over:
                    break
                has_ended.wait(POLL_SECONDS)
            except (KeyboardInterrupt, SystemExit) as signal:
                if status is not None:
                    raise
                status = signal.code if isinstance(signal, SystemExit) else 130
                progress.say("stopping after a checkpoint; interrupt again to stop without one")
                ray.get(channel.request_stop.remote())
    if "error" in outcome:
        raise outcome["error"]
    if status is not None:
        raise SystemExit(status)
    return outcome["result"]


def _show(messages: list[dict[str, Any]], progress: Progress) -> None:
    for message in messages:
        if "lines" in message:
            progress.advance(message["lines"] - progress.done)  # negative after a worker was lost
        else:
            progress.say(message["text"])
