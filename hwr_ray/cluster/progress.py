"""How far a long job is: one line that is rewritten on a terminal, a line each ten seconds in a log."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

log = logging.getLogger(__name__)

TERMINAL_SECONDS, LOG_SECONDS = 1.0, 10.0


class Progress:
    """Counts what is done of a total, which may not be known yet (None).

    The rate and the time left count from the first items: what comes before, such as the start of Ray's workers, says
    nothing of them.
    """

    def __init__(self, unit: str, total: Callable[[], int | None], *, done: int = 0) -> None:
        self.unit, self.total, self.done, self.before = unit, total, done, done
        self.start: float | None = None
        """When the first items were done."""
        self.shown = time.monotonic()
        self.on_terminal = sys.stderr.isatty()

    def advance(self, number: int) -> None:
        """Counts `number` more, and shows it now and then."""
        self.done += number
        now = time.monotonic()
        if number < 0 or (self.start is None and number):  # a loss, or the first items
            self.start, self.before = now, self.done
        if now - self.shown >= (TERMINAL_SECONDS if self.on_terminal else LOG_SECONDS):
            self.shown = now
            line = self.line(now - (self.start or now))
            if self.on_terminal:
                print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            else:
                log.info("%s", line)

    def line(self, seconds: float) -> str:
        """Done, total, rate and time left, some seconds after the first items."""
        counted, total = self.done - self.before, self.total()
        said = f"{self.done:,} {self.unit}" if total is None else f"{self.done:,} of {total:,} {self.unit}"
        if counted <= 0 or seconds <= 0:
            return said
        rate = counted / seconds
        said += f", {rate:,.0f} a second" if rate >= 10 else f", {rate:.1f} a second"
        return said if total is None else f"{said}, {timedelta(seconds=round((total - self.done) / rate))} left"

    def close(self) -> None:
        """Leaves the terminal on a fresh line."""
        if self.on_terminal:
            print(file=sys.stderr)


@contextmanager
def ten_seconds(what: str) -> Iterator[None]:
    """Says each ten seconds that something still goes on; says nothing of what takes less."""
    is_over = threading.Event()
    start = time.monotonic()

    def tell() -> None:
        while not is_over.wait(LOG_SECONDS):
            log.info("%s: %.0f s so far", what, time.monotonic() - start)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
