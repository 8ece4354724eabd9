"""Progress of a sweep: a live table on a terminal, otherwise a log line per epoch."""

import logging
import sys
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hwr_ray.tuning.trials import Ledger, Trial

log = logging.getLogger(__name__)

BEST_SHOWN = 10
"""Maximum number of ended trials in the table: those with the lowest CER."""


class TrialsView:
    """Context manager that shows the trials of a ledger."""

    def __init__(self, ledger: Ledger, epochs: int, limit: int) -> None:
        self.ledger, self.epochs, self.limit = ledger, epochs, limit
        self.running = dict[int, Trial]()
        self.live = Live(console=Console(stderr=True), auto_refresh=False) if sys.stderr.isatty() else None

    def __enter__(self) -> "TrialsView":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def started(self, trial: Trial) -> None:
        self.running[trial.number] = trial
        self._show(f"trial {trial.number}: {trial.describe()}")

    def advanced(self, trial: Trial) -> None:
        row = trial.epochs[-1]
        is_best = " (best)" if row is trial.best else ""
        self._show(f"trial {trial.number}, epoch {row['epoch']}/{self.epochs}: CER {100 * row['cer']:.2f} %{is_best}")

    def ended(self, trial: Trial) -> None:
        self.running.pop(trial.number, None)
        best = f", CER {100 * trial.best['cer']:.2f} %" if trial.epochs else ""
        reason = f" ({trial.reason})" if trial.reason else ""
        self._show(f"trial {trial.number} {trial.state}{best}{reason}")

    def _show(self, line: str) -> None:
        if self.live:
            self.live.update(self.table(), refresh=True)
        else:
            log.info("%s", line)

    def table(self) -> Table:
        """Returns a table of the running trials, followed by the best ended ones."""
        ended = self.ledger.in_state("finished", "stopped", "failed")
        rows = [*self.running.values(), *sorted(ended, key=lambda t: t.best.get("cer", 2.0))[:BEST_SHOWN]]
        table = Table(title=f"{len(ended)} of {self.limit} trials have ended")
        for name in ("trial", "state", "epoch", "CER %", "best %", "settings"):
            table.add_column(name, justify="left" if name in ("state", "settings") else "right")
        for trial in rows:
            state = "running" if trial.number in self.running else trial.state
            last, best = (f"{100 * row['cer']:.2f}" for row in (trial.epochs[-1], trial.best)) if trial.epochs else "––"
            table.add_row(str(trial.number), state, str(len(trial.epochs)), last, best, trial.describe())
        return table
