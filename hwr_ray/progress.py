"""How far a long job is: one line that is rewritten on a terminal, a line each ten seconds in a log."""

import logging
import sys
import time
from collections.abc import Callable
from datetime import timedelta

log = logging.getLogger(__name__)

TERMINAL_SECONDS, LOG_SECONDS = 1.0, 10.0


class Progress:
    """Counts what is done of a total, which may not be known yet (None)."""

    def __init__(self, unit: str, total: Callable[[], int | None], *, done: int = 0) -> None:
        self.unit, self.total, self.done, self.before = unit, total, done, done
        self.start = self.shown = time.monotonic()
        self.on_terminal = sys.stderr.isatty()

    def advance(self, number: int) -> None:
        """Counts `number` more, and shows it now and then."""
        self.done += number
        now = time.monotonic()
        if now - self.shown >= (TERMINAL_SECONDS if self.on_terminal else LOG_SECONDS):
            self.shown = now
            line = self.line(now - self.start)
            if self.on_terminal:
                print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            else:
                log.info("%s", line)

    def line(self, seconds: float) -> str:
        """Done, total, rate and time left after some seconds."""
        rate, total = (self.done - self.before) / max(seconds, 1e-9), self.total()
        said = f"{self.done:,} {self.unit}, {rate:,.0f} a second"
        if total is None:
            return said
        left = timedelta(seconds=round((total - self.done) / rate)) if rate else "unknown time"
        return f"{self.done:,} of {total:,} {self.unit}, {rate:,.0f} a second, {left} left"

    def close(self) -> None:
        """Leaves the terminal on a fresh line."""
        if self.on_terminal:
            print(file=sys.stderr)
