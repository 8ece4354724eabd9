"""How every job runs: settings from the command line, the user's mistakes in one sentence, an exit status to trust."""

import logging
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import tyro

from hwr_ray.errors import UserError

Settings = TypeVar("Settings")

log = logging.getLogger(__name__)


def run_job(settings_type: type[Settings], run: Callable[[Settings], None]) -> None:
    """Parses `settings_type` from the command line, logs it and calls `run` with it.

    Exits with status 2 after one sentence on stderr where the user can mend what is wrong (`UserError`); any other
    exception passes through with its traceback, and Python exits with status 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        settings = tyro.cli(settings_type, config=(tyro.conf.OmitArgPrefixes,))
        log.info("%s", settings)
        run(settings)
    except Exception as error:
        mistakes = [e for e in _causes(error) if isinstance(e, UserError)]
        if not mistakes:
            raise
        # The innermost, since Ray's wrapping of a UserError is one too, and its first line, since Ray adds advice.
        print(f"{sys.argv[0]}: {str(mistakes[-1]).splitlines()[0]}", file=sys.stderr)
        raise SystemExit(2) from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it: Ray wraps what a worker raised, in `cause` or in `__cause__`."""
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__
