"""How every job runs: settings from the command line, the user's mistakes in one sentence, an exit status to trust."""

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, TypeVar

import tyro

from hwr_ray.cluster.submission import check_lasting
from hwr_ray.command import program
from hwr_ray.errors import UserError

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Job:
    """A job by the module of its function, which is imported when it is run, and the names of both."""

    function: str
    settings: str
    description: str
    resumes: bool = False
    """Whether the same command resumes an interrupted one."""


JOBS = {
    "synthesize": Job(
        "synthetic.synthesize:synthesize",
        "synthetic.synthesize:SynthesisSettings",
        "Draws a labelled data set of names on school forms; nothing is downloaded.",
    ),
    "fetch_kaggle": Job(
        "data.kaggle:fetch",
        "data.kaggle:FetchSettings",
        "Fetches the labelled names of Kaggle's landlord/handwriting-recognition.",
    ),
    "prepare": Job(
        "data.prepare:prepare",
        "data.prepare:PrepareSettings",
        "Cleans label CSVs, decodes and fits their images, and writes Parquet.",
    ),
    "train": Job(
        "training.train:train",
        "training.settings:TrainSettings",
        "Trains a recognizer on prepared lines; the same command again resumes the run.",
        resumes=True,
    ),
    "tune": Job(
        "tuning.tune:tune",
        "tuning.tune:TuneSettings",
        "Sweeps over training settings on prepared lines; the same command again resumes the sweep.",
        resumes=True,
    ),
    "evaluate": Job(
        "evaluation.evaluate:evaluate",
        "evaluation.evaluate:EvaluateSettings",
        "Reads a prepared split with a bundle and measures how well.",
    ),
    "transcribe": Job(
        "transcription.transcribe:transcribe",
        "transcription.transcribe:TranscribeSettings",
        "Transcribes every image of a folder to Parquet; the same command again resumes.",
        resumes=True,
    ),
    "demo": Job(
        "recognition.demo:demo",
        "recognition.demo:DemoSettings",
        "Serves a web page that reads line images, on this machine's loopback.",
    ),
    "export": Job(
        "recognition.export:export",
        "recognition.export:ExportSettings",
        "Writes a bundle's network as ONNX or TorchScript, checked against the original on drawn lines.",
    ),
}
"""In the order in which data flows."""

NOISE = (
    "has constructor arguments in the object store and max_restarts > 0",  # at each start of Ray Data (ray#53727)
    "PYTHON worker processes have been started on node",  # as a sweep does on two CPUs
)
"""Partitions of lines that Ray prints and that mean nothing to a user."""
FILTER = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in sys.stdin.buffer:
    if not any(part in line for part in {[part.encode() for part in NOISE]!r}):
        os.write(2, line)
"""


class Console(io.TextIOWrapper):
    """Python's stderr, without NOISE, which Ray passes on from its workers, too."""

    is_after_noise = False

    def write(self, text: str) -> int:
        is_noise = any(part in text for part in NOISE)
        if is_noise or (self.is_after_noise and text == "\n"):  # print writes the end of a line apart
            self.is_after_noise = is_noise and not text.endswith("\n")
            return len(text)
        self.is_after_noise = False
        return super().write(text)


def main() -> None:
    """Runs the job that the first argument names: the command `hwr-ray`."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: hwr-ray JOB [--help] ...\n")
        for job, told in JOBS.items():
            print(f"  {job:14}{told.description}")
    elif name == "--version":
        print(version("hwr_ray"))
    elif name not in JOBS:
        print(f"{program()[-1]}: there is no job {name}: name one of {', '.join(JOBS)}", file=sys.stderr)
        raise SystemExit(2)
    else:
        run_named(name, arguments)


def run_named(name: str, arguments: Sequence[str] | None = None) -> None:
    """Runs a job of JOBS with arguments, by default those of the command line. Ends as `run_job` does."""
    job = JOBS[name]
    settings, function = (_imported(path) for path in (job.settings, job.function))
    run_job(settings, function, arguments, description=job.description, resumes=job.resumes)


def _imported(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(f"hwr_ray.{module}"), name)


def run_job(
    settings_type: type[Settings],
    run: Callable[[Settings], str | None],
    arguments: Sequence[str] | None = None,
    *,
    description: str | None = None,
    resumes: bool = False,
) -> None:
    """Parses `settings_type` from the arguments, calls `run` with it and prints the path that it returns.

    From then on anything else that is printed goes to stderr, also after the job: Ray prints while the process ends.

    Exits with status 2 after one sentence on stderr where the user can mend what is wrong (`UserError`), with 130 at
    Ctrl-C and 143 at SIGTERM; any other exception passes through with its traceback, and Python exits with status 1.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    set_up_console()
    name = " ".join([program()[-1], *sys.argv[1:2]] if arguments is not None else [sys.argv[0]])
    try:
        options = (tyro.conf.OmitArgPrefixes,)
        settings = tyro.cli(settings_type, prog=name, args=arguments, description=description, config=options)
        check_lasting(getattr(settings, "out", None))
        stdout, sys.stdout = sys.stdout, sys.stderr
        if (result := run(settings)) is not None:
            print(result, file=stdout, flush=True)
    except KeyboardInterrupt:
        what = "goes on with what is there" if resumes else "starts over"
        print(f"{name}: interrupted; the same command {what}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        # No right to a file is nearly always the user's to mend, and its text names the file.
        mistakes = [e for e in _causes(error) if isinstance(e, UserError | PermissionError)]
        if not mistakes:
            raise
        # The innermost, since Ray's wrapping of a UserError is one too, and its first line, since Ray adds advice.
        print(f"{name}: {str(mistakes[-1]).splitlines()[0]}", file=sys.stderr)
        raise SystemExit(2) from None


def set_up_console() -> None:
    """Any path can be printed, whatever the console's encoding; the log goes to stderr; Ray's noise does not."""
    if sys.stderr and sys.stderr is sys.__stderr__:  # else a program that runs this job, such as a test, has its own
        _filter_stderr()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def _filter_stderr() -> None:
    """Lets what is not written by Python, such as by Ray's C++ code, pass through a process that leaves out NOISE.

    A process, since it still passes on the last words of this one when it is aborted.
    """
    console = os.dup(2)
    command = [sys.executable, "-I", "-S", "-c", FILTER]
    reader, writer = os.pipe()
    subprocess.Popen(command, stdin=reader, stdout=subprocess.DEVNULL)  # noqa: S603
    os.close(reader)
    os.dup2(writer, 2)
    os.close(writer)
    sys.stderr = Console(os.fdopen(console, "wb"), encoding=sys.stderr.encoding, line_buffering=True)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it: Ray wraps what workers raised, in `cause`, `__cause__` or `worker_failures`."""
    yield error
    failures = list(getattr(error, "worker_failures", {}).values())
    for inner in [getattr(error, "cause", None) or error.__cause__, *failures]:
        if isinstance(inner, BaseException):
            yield from _causes(inner)
