"""What a training run and the process that started it tell each other while it goes."""

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hwr_ray.cluster.progress import Progress

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class Board:
    """Lives with the driver; the worker of rank 0 writes to it and reads from it."""

    def __init__(self) -> None:
        self.told, self.is_stop_asked = list[dict[str, Any]](), False

    def tell(self, what: dict[str, Any]) -> bool:
        """Passes on how many `lines` are done, or a `text` for the log; returns whether the run should stop."""
        self.told.append(what)
        return self.is_stop_asked

    def take(self) -> list[dict[str, Any]]:
        """What was told since the last time."""
        told, self.told = self.told, []
        return told

    def ask_to_stop(self) -> None:
        self.is_stop_asked = True


def new_board() -> Any:
    """A Board on this process's own node, which is not lost before this process is."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


def follow(board: Any, fit: Callable[[], Any], *, total: int, done: int) -> Any:
    """Calls `fit` in another thread and shows what its workers tell of `total` lines, `done` of them before.

    Ctrl-C and SIGTERM ask the workers to stop after a checkpoint; a second one ends this process. Raises what `fit`
    raises, or SystemExit with the signal's status where it was stopped.
    """
    outcome: dict[str, Any] = {}
    has_ended = threading.Event()  # not the thread's join: once interrupted, that takes the thread for ended

    def call() -> None:
        try:
            outcome["result"] = fit()
        except BaseException as error:
            outcome["error"] = error
        has_ended.set()

    progress = Progress("lines", lambda: total, done=done)
    threading.Thread(target=call, daemon=True).start()
    status = None
    while True:
        try:
            is_over = has_ended.is_set()
            _show(ray.get(board.take.remote()), progress)
            if is_over:
                break
            has_ended.wait(POLL_SECONDS)
        except (KeyboardInterrupt, SystemExit) as signal:
            if status is not None:
                raise
            status = signal.code if isinstance(signal, SystemExit) else 130
            log.info("stopping after a checkpoint; once more, and it stops without one")
            ray.get(board.ask_to_stop.remote())
    progress.close()
    if "error" in outcome:
        raise outcome["error"]
    if status is not None:
        raise SystemExit(status)
    return outcome["result"]


def _show(told: list[dict[str, Any]], progress: Progress) -> None:
    for what in told:
        if "lines" in what:
            progress.advance(what["lines"] - progress.done)  # less than 0 after a loss
        else:
            if progress.on_terminal:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            log.info("%s", what["text"])
