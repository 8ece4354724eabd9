"""How every job runs: settings from the command line, the user's mistakes in one sentence, an exit status to trust."""

import logging
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import tyro

from hwr_ray.errors import UserError
from hwr_ray.submission import check_lasting

Settings = TypeVar("Settings")

log = logging.getLogger(__name__)


def run_job(settings_type: type[Settings], run: Callable[[Settings], None]) -> None:
    """Parses `settings_type` from the command line, logs it and calls `run` with it.

    Exits with status 2 after one sentence on stderr where the user can mend what is wrong (`UserError`), with 130 at
    Ctrl-C; any other exception passes through with its traceback, and Python exits with status 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        settings = tyro.cli(settings_type, config=(tyro.conf.OmitArgPrefixes,))
        log.info("%s", settings)
        check_lasting(getattr(settings, "out", None))
        run(settings)
    except KeyboardInterrupt:
        print(f"{sys.argv[0]}: interrupted; the same command goes on with what is there", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        # No right to a file is nearly always the user's to mend, and its text names the file.
        mistakes = [e for e in _causes(error) if isinstance(e, UserError | PermissionError)]
        if not mistakes:
            raise
        # The innermost, since Ray's wrapping of a UserError is one too, and its first line, since Ray adds advice.
        print(f"{sys.argv[0]}: {str(mistakes[-1]).splitlines()[0]}", file=sys.stderr)
        raise SystemExit(2) from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it: Ray wraps what workers raised, in `cause`, `__cause__` or `worker_failures`."""
    yield error
    failures = list(getattr(error, "worker_failures", {}).values())
    for inner in [getattr(error, "cause", None) or error.__cause__, *failures]:
        if isinstance(inner, BaseException):
            yield from _causes(inner)
