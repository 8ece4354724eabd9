"""Progress of a long job, as a bar on a terminal or a line every ten seconds in a log."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)

TERMINAL_SECONDS, LOG_SECONDS = 1.0, 10.0


class Progress:
    """Progress of a number of items. The context shows it on a terminal or in the log.

    `total` returns None while the total is unknown. The rate and the time left count from the first items, because
    Ray's workers take time to start.
    """

    def __init__(self, unit: str, total: Callable[[], int | None], *, done: int = 0) -> None:
        self.unit, self.total, self.done, self.before = unit, total, done, done
        self.start: float | None = None
        """Time of the first items."""
        self.shown = time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            columns = BarColumn(), TextColumn("{task.description}")
            self.bar = Bar(*columns, console=Console(stderr=True), auto_refresh=False)
            self.task = self.bar.add_task(self.line(0.0), total=self.total(), completed=self.done)
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, number: int) -> None:
        """Adds `number` items to those done and shows the progress. `number` is negative if items were lost."""
        self.done += number
        now = time.monotonic()
        if number < 0 or (self.start is None and number):  # items were lost, or the first are done
            self.start, self.before = now, self.done
        if now - self.shown >= (TERMINAL_SECONDS if self.bar else LOG_SECONDS):
            self.shown = now
            line = self.line(now - (self.start or now))
            if self.bar:
                self.bar.update(self.task, description=line, completed=self.done, total=self.total(), refresh=True)
            else:
                log.info("%s", line)

    def say(self, text: str) -> None:
        """Logs a line, above the bar if there is one."""
        if self.bar:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            log.info("%s", text)

    def line(self, seconds: float) -> str:
        """Returns done, total, rate and time left, `seconds` after the first items."""
        counted, total = self.done - self.before, self.total()
        text = f"{self.done:,} {self.unit}" if total is None else f"{self.done:,} of {total:,} {self.unit}"
        if counted <= 0 or seconds <= 0:
            return text
        rate = counted / seconds
        text += f", {rate:,.0f} a second" if rate >= 10 else f", {rate:.1f} a second"
        return text if total is None else f"{text}, {timedelta(seconds=round((total - self.done) / rate))} left"


@contextmanager
def log_elapsed(what: str) -> Iterator[None]:
    """Logs every ten seconds how long the block has been running."""
    is_over = threading.Event()
    start = time.monotonic()

    def log_time() -> None:
        while not is_over.wait(LOG_SECONDS):
            log.info("%s: %.0f s so far", what, time.monotonic() - start)

    thread = threading.Thread(target=log_time, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
