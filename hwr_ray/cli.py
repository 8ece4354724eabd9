"""Runs a job from the command line: parses its settings, reports user errors and sets the exit status."""

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
    """A job. Its function and its settings are given as `MODULE:NAME` and imported when the job runs."""

    function: str
    settings: str
    description: str
    resumes: bool = False
    """Whether the same command resumes an interrupted run."""


JOBS = {
    "synthesize": Job(
        "synthetic.synthesize:synthesize",
        "synthetic.synthesize:SynthesisSettings",
        "Generates a synthetic data set of handwritten lines; needs no download.",
    ),
    "fetch_kaggle": Job(
        "data.kaggle:fetch",
        "data.kaggle:FetchSettings",
        "Downloads Kaggle's data set landlord/handwriting-recognition.",
    ),
    "prepare": Job(
        "data.prepare:prepare",
        "data.prepare:PrepareSettings",
        "Cleans labels, fits their images to the canvas and writes both as Parquet.",
    ),
    "recombine": Job(
        "transcription.recombine:recombine",
        "transcription.recombine:RecombineSettings",
        "Composes training lines of new texts from the letters of prepared lines.",
    ),
    "train": Job(
        "training.train:train",
        "training.settings:TrainSettings",
        "Trains a recognizer on prepared lines; the same command resumes an interrupted run.",
        resumes=True,
    ),
    "tune": Job(
        "tuning.tune:tune",
        "tuning.tune:TuneSettings",
        "Runs a hyperparameter sweep on prepared lines; the same command resumes an interrupted sweep.",
        resumes=True,
    ),
    "evaluate": Job(
        "evaluation.evaluate:evaluate",
        "evaluation.evaluate:EvaluateSettings",
        "Evaluates a bundle on a prepared split.",
    ),
    "transcribe": Job(
        "transcription.transcribe:transcribe",
        "transcription.settings:TranscribeSettings",
        "Transcribes images to Parquet; the same command resumes an interrupted run.",
        resumes=True,
    ),
    "demo": Job(
        "recognition.demo:demo",
        "recognition.demo:DemoSettings",
        "Serves a web page that transcribes line images, on this machine's loopback interface.",
    ),
    "export": Job(
        "recognition.export:export",
        "recognition.export:ExportSettings",
        "Exports a bundle's network as ONNX or TorchScript, checked against the original on synthetic lines.",
    ),
}
"""All jobs by name, in the order of the data flow."""

NOISE = (
    "has constructor arguments in the object store and max_restarts > 0",  # at each start of Ray Data (ray#53727)
    "PYTHON worker processes have been started on node",  # in a sweep on two CPUs
)
"""Substrings of lines that Ray prints and that mean nothing to a user."""
FILTER = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in sys.stdin.buffer:
    if not any(part in line for part in {[part.encode() for part in NOISE]!r}):
        os.write(2, line)
"""


class Console(io.TextIOWrapper):
    """Python's stderr without lines that contain NOISE, including those that Ray forwards from its workers."""

    is_after_noise = False

    def write(self, text: str) -> int:
        is_noise = any(part in text for part in NOISE)
        if is_noise or (self.is_after_noise and text == "\n"):  # print writes the newline separately
            self.is_after_noise = is_noise and not text.endswith("\n")
            return len(text)
        self.is_after_noise = False
        return super().write(text)


def main() -> None:
    """Runs the job named by the first argument. Entry point of the command `hwr-ray`."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: hwr-ray JOB [--help] ...\n")
        for job_name, job in JOBS.items():
            print(f"  {job_name:14}{job.description}")
    elif name == "--version":
        print(version("hwr_ray"))
    elif name not in JOBS:
        print(f"{program()[-1]}: there is no job {name}: choose one of {', '.join(JOBS)}", file=sys.stderr)
        raise SystemExit(2)
    else:
        run_named(name, arguments)


def run_named(name: str, arguments: Sequence[str] | None = None) -> None:
    """Runs a job of JOBS with the arguments, by default those of the command line. Exits like `run_job`."""
    job = JOBS[name]
    settings, function = (_import(path) for path in (job.settings, job.function))
    run_job(settings, function, arguments, description=job.description, resumes=job.resumes)


def _import(path: str) -> Any:
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
    """Parses `settings_type` from the arguments, calls `run` with the settings and prints the path that it returns.

    Everything else that is printed goes to stderr, even after the job, because Ray prints while the process exits.

    Exits with status 2 after one sentence on stderr for an error that the user can fix (`UserError`), with 130 on
    Ctrl-C and with 143 on SIGTERM. Any other exception propagates with its traceback, and Python exits with status 1.
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
        effect = "resumes the job" if resumes else "starts over"
        print(f"{name}: interrupted; the same command {effect}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        # The user can nearly always fix a PermissionError, and its message names the file.
        user_errors = [e for e in _causes(error) if isinstance(e, UserError | PermissionError)]
        if not user_errors:
            raise
        # The innermost one, because Ray wraps a UserError in another. Only its first line, because Ray adds advice.
        print(f"{name}: {str(user_errors[-1]).splitlines()[0]}", file=sys.stderr)
        raise SystemExit(2) from None


def set_up_console() -> None:
    """Escapes characters that the console can't encode, sends the log to stderr and drops Ray's noise."""
    if sys.stderr and sys.stderr is sys.__stderr__:  # otherwise the caller, such as a test, has replaced it
        _filter_stderr()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def _filter_stderr() -> None:
    """Filters NOISE from output that bypasses Python, such as that of Ray's C++ code, in a separate process.

    A separate process still forwards the last output of this one if it is aborted.
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
    """Yields the error and its causes. Ray keeps what workers raised in `cause`, `__cause__` or `worker_failures`."""
    yield error
    failures = list(getattr(error, "worker_failures", {}).values())
    for inner in [getattr(error, "cause", None) or error.__cause__, *failures]:
        if isinstance(inner, BaseException):
            yield from _causes(inner)
