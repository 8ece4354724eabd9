"""Tests of how the suite is marked, distributed to processes and timed."""

import json
import shutil

import pytest
import suite as suite_plugin
from conftest import ROOT

pytestmark = pytest.mark.slow  # each test starts pytest

TESTS = {
    "test_jobs": "def test_job(): pass\ndef test_mistake(): pass",
    "test_notebook": "def test_page(browser): pass\ndef test_report(browser, ray_cluster): pass",
    "test_other": "def test_other(): pass\n@pytest.mark.slow\ndef test_slow(): pass",
}
FIXTURES = """
import pytest

pytest_plugins = ["suite"]

@pytest.fixture
def browser(): pass

@pytest.fixture(scope="session")
def ray_cluster():
    print("a cluster starts")
"""
SETTINGS = '[tool.pytest.ini_options]\ntestpaths = ["tests"]\nmarkers = ["ray", "browser", "slow"]\n'


@pytest.fixture
def suite(pytester, monkeypatch):
    """A function that runs a small suite in a separate process and returns its outcomes and its output.

    State that other tests leave in this process does not affect it.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for benchmarks
    pytester.makepyprojecttoml(SETTINGS)
    folder = pytester.mkdir("tests")
    shutil.copy(suite_plugin.__file__, folder)  # for the other processes
    (folder / "conftest.py").write_text(FIXTURES)
    for name, text in TESTS.items():
        (folder / f"{name}.py").write_text(f"import pytest\n{text}\n")

    def run(*arguments):
        done = pytester.runpytest_subprocess("--strict-markers", "-v", "-s", *arguments)
        return done.parseoutcomes(), done.stdout.str() + done.stderr.str()

    return run


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("ray", {"job", "mistake", "report"}),
        ("browser", {"page", "report"}),
        ("not ray and not browser", {"other", "slow"}),
        ("not ray and not browser and not slow", {"other"}),
    ],
)
def test_tests_are_marked_by_their_module_and_their_fixtures(suite, chosen, names):
    outcomes, output = suite("-m", chosen)
    assert outcomes["passed"] == len(names) and all(f"::test_{name} " in output for name in names)


def test_the_tests_of_a_module_share_one_process_and_modules_with_ray_come_first(suite):
    _, output = suite("-n", "2")
    by_test, first = {}, {}
    for line in output.splitlines():
        if line.startswith("[gw") and "PASSED" in line:
            process, test = line.split()[0], line.split("::")[1].strip()
            by_test[test] = process
            first.setdefault(process, test)
    assert len(by_test) == 6
    assert by_test["test_job"] == by_test["test_mistake"] != by_test["test_page"] == by_test["test_report"]
    assert by_test["test_other"] == by_test["test_slow"]
    assert set(first.values()) == {"test_job", "test_page"}


def test_a_module_with_ray_that_is_not_listed_is_refused(suite, pytester):
    (pytester.path / "tests/test_new.py").write_text("def test_new(ray_cluster): pass")
    _, output = suite("--collect-only")
    assert "test_new has tests with Ray: list it in suite.py" in output


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_whole_run_is_recorded_with_its_commit_and_its_slowest_tests(suite, tmp_path, processes):
    file = tmp_path / "tests.json"
    _, output = suite("-n", processes, f"--record={file}")
    record = json.loads(file.read_text())
    assert record["commit"] and record["hardware"]["cores"] and record["wall_seconds"] >= 0
    assert record["tests"] == {"passed": 6} and record["test_seconds"].keys() == {"ray", "browser", "slow", "other"}
    assert sorted(record["slowest"])[0] == "tests/test_jobs.py::test_job" and len(record["slowest"]) == 6
    assert "slowest 6 tests" in output and f"wrote {file}" in output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-m", "not ray"], "only some"),
        (["-k", "job"], "only some"),
        (["tests/test_jobs.py"], "only some"),
        (["-p", "broken"], "not every test passed"),
    ],
)
def test_another_run_leaves_the_record_as_it_is(suite, pytester, tmp_path, arguments, reason):
    file = tmp_path / "tests.json"
    file.write_text("before")
    if "broken" in arguments:
        arguments = []
        (pytester.path / "tests/test_jobs.py").write_text("def test_job(): raise ValueError")
    _, output = suite(f"--record={file}", *arguments)
    assert file.read_text() == "before" and reason in output
