"""Helpers that run jobs like a command line does, in this process or in a separate one."""

import io
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from benchmarks.measuring import descendants

ROOT = Path(__file__).parents[1]


def start(job, *arguments, cwd=ROOT, prelude="", env=None):
    """Starts a job in a separate process. `prelude` is Python code that runs there first and can import from tests/."""
    command = [sys.executable, ROOT / "jobs" / f"{job}.py", *map(str, arguments)]
    if prelude:
        path = str(command[1])
        code = f"{prelude}\nimport runpy, sys\nsys.argv[0] = {path!r}\nrunpy.run_path({path!r}, run_name='__main__')"
        command[1:2] = ["-c", code]
        env = {**(env or os.environ), "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=env)


def run_apart(job, *arguments, status=0, cwd=ROOT):
    """Returns the stdout and stderr of a job that runs in a separate process."""
    process = start(job, *arguments, cwd=cwd)
    try:
        out, err = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == status, f"{process.args} ended with {process.returncode}\n{out}\n{err}"
    return out, err


def run(job, *arguments, status=0, cwd=ROOT, folder="jobs"):
    """Returns the stdout and stderr of a job or program that runs in this process, on this process's cluster."""
    out, err = io.StringIO(), io.StringIO()
    script = str(ROOT / folder / f"{job}.py")
    with _as_a_process(script, arguments, cwd), redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        except Exception:  # like Python at the top level
            traceback.print_exc()
            code = 1
    assert code == status, f"{job} {arguments} ended with {code}\n{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue(), err.getvalue()


@contextmanager
def _as_a_process(script, arguments, cwd) -> Iterator[None]:
    """Sets the command line, folder and logging of a fresh process, and restores this process's state afterwards."""
    root, before, threads = logging.getLogger(), os.getcwd(), torch.get_num_threads()  # noqa: PTH109
    handlers, level, terminate = root.handlers[:], root.level, signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.callback(signal.signal, signal.SIGTERM, terminate)
        stack.callback(root.setLevel, level)
        stack.callback(setattr, root, "handlers", handlers)
        stack.callback(os.chdir, before)
        stack.callback(_set_environment, dict(os.environ))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        root.handlers = []
        root.setLevel(logging.WARNING)
        os.chdir(cwd)
        yield


def _set_environment(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


class _Tables:
    """A stand-in for a Ray data set in a preparation. It calls each stage on one table after the other."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self.tables, self.context = tables, SimpleNamespace()

    def map_batches(self, stage: Any, *, fn_kwargs: Any = None, fn_constructor_kwargs: Any = None, **_: Any) -> Any:
        call = stage(**fn_constructor_kwargs) if isinstance(stage, type) else partial(stage, **fn_kwargs or {})
        outputs = map(call, self.tables)
        return _Tables(t for tables in outputs for t in ([tables] if isinstance(tables, pa.Table) else tables))

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return iter(self.tables)


@contextmanager
def in_this_process() -> Iterator[None]:
    """Does the work of preparation, training and transcription in this process, where torch is loaded, without workers.

    It suits tests that do not concern the workers. Ray Train has a local mode; the stages of preparation and the actors
    of `transcription.actors` are called on one table after the other.
    """
    import ray.data
    import ray.train

    real = ray.train.ScalingConfig

    def read(dataset: Any, actor: Any, args: Any, *_: Any, **__: Any) -> Any:
        reader = actor(*args)
        tables = dataset.iter_batches(batch_format="pyarrow", batch_size=None)
        return ray.data.from_arrow([reader(table) for table in tables])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.train, "ScalingConfig", lambda **_: real(num_workers=0))
        # Tiny networks do not gain from two threads.
        patch.setattr("hwr_ray.training.worker_state.threads_among", lambda num_processes: 1)
        # The loop silences the logging of its own process, which here is the driver.
        quiet = SimpleNamespace(getLogger=lambda: logging.getLogger("a worker's"), WARNING=logging.WARNING)
        patch.setattr("hwr_ray.training.loop.logging", quiet)
        fit_decoders_here(patch)
        patch.setattr(ray.data, "from_items", lambda items, **_: _Tables(pa.Table.from_pylist([i]) for i in items))
        patch.setattr("hwr_ray.data.dataset.Prepared.read", lambda self, split: ray.data.from_arrow(self.table(split)))
        patch.setattr("hwr_ray.transcription.actors._read", read)
        patch.setattr("hwr_ray.transcription.actors.gc", SimpleNamespace(collect=lambda: None, freeze=lambda: None))
        yield


def fit_decoders_here(patch: pytest.MonkeyPatch) -> None:
    """Fits decoders in this process, for tests of earlier steps, to save one process per fit."""
    from hwr_ray.training.decoder_fitting import fit_decoder

    for module in ("training.train", "tuning.tune"):
        patch.setattr(f"hwr_ray.{module}.fit_decoder_remotely", lambda *args: fit_decoder(*args[:3], device="cpu"))


def run_here(job, *arguments, **settings):
    """Like `run`, with `in_this_process`."""
    with in_this_process():
        return run(job, *arguments, **settings)


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Calls `act` in another thread, and raises its exception at the end of the block."""
    outcome: list[BaseException | None] = []

    def call() -> None:
        try:
            act()
        except BaseException as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    yield
    thread.join(timeout=10)
    assert outcome, "the other thread has not finished"
    if outcome[0]:
        raise outcome[0]


def read_until(process: subprocess.Popen, *words: str) -> str:
    """Returns the stderr of a job up to the line by which all `words` have appeared."""
    text, missing = "", set(words)
    for line in process.stderr:
        text += line
        missing -= {word for word in missing if word in line}
        if not missing:
            return text
    raise AssertionError(f"stderr lacks {missing}:\n{text}")


def end_of(process: subprocess.Popen) -> str:
    """Waits for the end of a job and returns the rest of its stderr."""
    text = process.stderr.read()
    process.wait(timeout=100)
    return text


def mistake(job, *arguments, cwd=ROOT, run: Callable = run):
    """Returns the message of a job's user error on stderr, without the log lines before it."""
    _, err = run(job, *arguments, status=2, cwd=cwd)
    assert "Traceback" not in err
    return err.splitlines()[-1]


def named_below(pid, name):
    """Returns the ids of the descendants of a process with `name` in their command line."""
    pids = []
    for child in descendants(pid):
        with suppress(OSError):  # the process has ended
            if name in Path(f"/proc/{child}/cmdline").read_text():
                pids.append(child)
    return pids
