"""Tests of how a job ends: user errors become one sentence, all other exceptions propagate."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
from job_runs import ROOT

from hwr_ray.cli import JOBS, NOISE, Console, main, run_job
from hwr_ray.command import command
from hwr_ray.errors import UserError
from hwr_ray.versions import versions


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    out: str
    inner: Inner = Inner()
    lines: int = 5

    def __post_init__(self) -> None:
        if self.lines < 1:
            raise UserError(f"--lines must be positive, not {self.lines}")


class WrappedByRay(Exception):
    """Carries the exception of a worker, like Ray's errors."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def raise_plain() -> None:
    raise UserError("the file a.csv is empty")


def raise_from() -> None:
    try:
        raise_plain()
    except UserError as error:
        raise RuntimeError("a task failed") from error


def raise_twice_from() -> None:
    try:
        raise_from()
    except RuntimeError as error:
        raise ValueError("the job failed") from error


def raise_as_ray() -> None:
    raise WrappedByRay(UserError("the file a.csv is empty"))


@pytest.fixture
def command_line(monkeypatch):
    def set_arguments(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["jobs/a.py", *arguments])

    return set_arguments


@pytest.mark.parametrize("fail", [raise_plain, raise_from, raise_twice_from, raise_as_ray])
def test_a_users_mistake_is_one_sentence_on_stderr_and_status_2(command_line, capsys, fail):
    command_line("--out", "x")
    with pytest.raises(SystemExit) as stop:
        run_job(Settings, lambda _: fail())
    assert stop.value.code == 2
    assert stop.value.__suppress_context__  # no traceback
    written = capsys.readouterr()
    assert written.err == "jobs/a.py: the file a.csv is empty\n"
    assert written.out == ""


def test_settings_that_contradict_themselves_are_a_users_mistake(command_line, capsys):
    command_line("--out", "x", "--lines", "0")
    with pytest.raises(SystemExit) as stop:
        run_job(Settings, lambda _: pytest.fail("ran"))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "jobs/a.py: --lines must be positive, not 0\n"


@pytest.mark.parametrize("arguments", [(), ("--out", "x", "--lines", "many"), ("--out", "x", "--nope")])
def test_a_command_line_that_cannot_be_parsed_is_status_2_and_runs_nothing(command_line, capsys, arguments):
    command_line(*arguments)
    with pytest.raises(SystemExit) as stop:
        run_job(Settings, lambda _: pytest.fail("ran"))
    assert stop.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError("gone")])
def test_any_other_error_passes_through(command_line, error):
    def run(_: Settings) -> None:
        raise error

    command_line("--out", "x")
    with pytest.raises(type(error)) as raised:
        run_job(Settings, run)
    assert raised.value is error


def test_only_the_result_comes_to_stdout(command_line, capsys):
    def run(_: Settings) -> str:
        print("(raylet) WARNING: 8 workers")
        return "/out"

    command_line("--out", "x")
    run_job(Settings, run)
    print("Ray prints as it ends")
    assert capsys.readouterr() == ("/out\n", "(raylet) WARNING: 8 workers\nRay prints as it ends\n")


def test_help_comes_to_stdout(command_line, capsys):
    command_line("--help")
    with pytest.raises(SystemExit) as stop:
        run_job(Settings, lambda _: pytest.fail("ran"), description="Does nothing.")
    assert stop.value.code == 0
    written = capsys.readouterr()
    assert "Does nothing." in written.out and "--lines" in written.out and not written.err


@pytest.mark.parametrize(("resumes", "effect"), [(True, "resumes the job"), (False, "starts over")])
def test_an_interrupt_is_one_sentence_and_status_130(command_line, capsys, resumes, effect):
    def run(_: Settings) -> None:
        raise KeyboardInterrupt

    command_line("--out", "x")
    with pytest.raises(SystemExit) as stop:
        run_job(Settings, run, resumes=resumes)
    assert stop.value.code == 130
    assert capsys.readouterr().err.startswith(f"jobs/a.py: interrupted; the same command {effect}")


def test_a_submitted_job_may_not_write_to_the_folder_that_ray_deletes(command_line, capsys, monkeypatch):
    submitted = {"runtime_env": {"working_dir": "gcs://_ray_pkg_0.zip", "env_vars": {"A": "1"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    seen: list[str] = []
    for out in ("/shared/x", "s3://bucket/x", "~/x"):
        command_line("--out", out)
        run_job(Settings, lambda settings: seen.append(settings.out))
    assert seen == ["/shared/x", "s3://bucket/x", "~/x"]
    command_line("--out", "x")
    with pytest.raises(SystemExit) as stop:
        run_job(Settings, lambda _: pytest.fail("ran"))
    assert stop.value.code == 2
    assert "--out x would be lost" in capsys.readouterr().err


def test_settings_come_from_the_command_line_without_prefixes_for_inner_ones(command_line):
    seen: list[Settings] = []
    command_line("--out", "x", "--depth", "3")
    run_job(Settings, seen.append)
    assert seen == [Settings(out="x", inner=Inner(depth=3))]


@pytest.mark.parametrize("script", ["/usr/bin/hwr-ray", "/x/hwr_ray/__main__.py"])
def test_the_command_runs_the_job_that_it_is_given_and_names_itself(monkeypatch, capsys, script):
    monkeypatch.setattr("sys.argv", [script, "export", "--model", "/none", "--out", "/none/x"])
    with pytest.raises(SystemExit) as stop:
        main()
    name = "hwr-ray" if script.endswith("hwr-ray") else "hwr_ray"
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"{name} export: there is no bundle /none")


def test_the_command_lists_its_jobs_which_are_the_scripts(monkeypatch, capsys):
    for arguments in ([], ["--help"]):
        monkeypatch.setattr("sys.argv", ["hwr-ray", *arguments])
        main()
        listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:])
        assert listed == {name: job.description for name, job in JOBS.items()}
    assert JOBS.keys() == {path.stem for path in (ROOT / "jobs").glob("*.py")}


def test_the_command_knows_its_version_and_no_other_job(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["hwr-ray", "--version"])
    main()
    assert capsys.readouterr().out == f"{versions()['hwr_ray']}\n"
    monkeypatch.setattr("sys.argv", ["hwr-ray", "trian"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "there is no job trian: choose one of synthesize, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["jobs/train.py", "--out", "a b"], "python jobs/train.py --out 'a b'"),
        (["/bin/hwr-ray", "train", "--out", "a"], "hwr-ray train --out a"),
        (["/x/hwr_ray/__main__.py", "train"], "python -m hwr_ray train"),
    ],
)
def test_a_command_is_told_as_it_was_typed(monkeypatch, argv, expected):
    monkeypatch.setattr("sys.argv", argv)
    assert command() == expected


def test_the_console_leaves_out_some_lines_of_rays_whoever_writes_them():
    console = Console(written := io.BytesIO(), encoding="utf-8", line_buffering=True)
    for line in ("before", *(f"(TrainController pid=5) Actor {part}. See ..." for part in NOISE), "", "after"):
        print(line, file=console)
    assert written.getvalue() == b"before\n\nafter\n"


def test_the_last_words_of_a_process_that_is_aborted_reach_the_console():
    """C++ code writes to file descriptor 2, and the process may end immediately."""
    program = f"""
import os
from hwr_ray.cli import set_up_console
set_up_console()
os.write(2, b"first\\n" + {NOISE[0].encode()!r} + b"\\nlast\\n")
os.abort()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode < 0 and done.stderr == "first\nlast\n"


def test_paths_that_the_encoding_lacks_are_printed_with_escapes(monkeypatch):
    program = "from hwr_ray.cli import set_up_console; set_up_console(); print('/a/é/\\udcff')"
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "/a/\\xe9/\\udcff\n"
