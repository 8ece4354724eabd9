"""A pytest plugin that marks tests by what they need, groups them by module and reports the slowest."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

RAY_MODULES = ("test_submit", "test_train_kills", "test_nodes", "test_jobs", "test_transcribe_kills", "test_tune_job")
RAY_MODULES += ("test_start", "test_s3")
"""Modules in which every test starts jobs or clusters, the longest first."""
PARTLY_RAY = ("test_deploy", "test_notebook", "test_demo", "test_connection")
"""Modules in which some tests do."""
NUM_SLOWEST = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("suite")
    group.addoption("--record", metavar="FILE", type=Path, help="write the times of a whole, successful run as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # not a worker of xdist, which reports to the main process
        config.pluginmanager.register(Times(config), "suite-times")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        module, fixtures = item.path.stem, set(getattr(item, "fixturenames", ()))
        if "ray_cluster" in fixtures or module in RAY_MODULES:
            item.add_marker("ray")
        if "browser" in fixtures:
            item.add_marker("browser")
        if is_marked(item, "ray") and module not in RAY_MODULES + PARTLY_RAY:
            raise pytest.UsageError(f"{module} has tests with Ray: list it in {Path(__file__).name}")
    if hasattr(config, "workerinput"):  # several processes share the modules: long ones first, short ones fill the gaps
        order = {name: place for place, name in enumerate(RAY_MODULES + PARTLY_RAY)}
        items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a module, which share its fixtures, in one process, and the modules in their order.

    Each process has its own cluster. xdist's `loadgroup` has no effect with pytest 9.2, whose node ids it can't change,
    and its `loadscope` begins with the modules that have the most tests.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByModule(config, log)


def is_marked(item: pytest.Item, name: str) -> bool:
    return item.get_closest_marker(name) is not None


class Times:
    """Collects the duration of each test, in whichever process it ran."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.started = time.monotonic()
        self.seconds: Counter[str] = Counter()
        """Total seconds of setup, call and teardown of each test, by its id."""
        self.kinds: dict[str, str] = {}
        self.outcomes: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid
        self.seconds[test] += report.duration
        self.kinds[test] = next((kind for kind in ("ray", "browser", "slow") if kind in report.keywords), "other")
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1

    def summary(self) -> dict[str, Any]:
        """Returns the seconds of the whole run, of each kind of test and of the slowest tests."""
        by_kind: Counter[str] = Counter()
        for test, seconds in self.seconds.items():
            by_kind[self.kinds[test]] += seconds
        return {
            "wall_seconds": round(time.monotonic() - self.started, 1),
            "processes": self.config.getoption("numprocesses", None) or 1,
            "tests": dict(self.outcomes),
            "test_seconds": {kind: round(seconds, 1) for kind, seconds in by_kind.most_common()},
            "slowest": {test: round(seconds, 1) for test, seconds in self.seconds.most_common(NUM_SLOWEST)},
        }

    def why_not_recorded(self, exitstatus: int) -> str | None:
        """Returns why this run must not be recorded, or None if it may be."""
        options = self.config.option
        is_partial = any((options.markexpr, options.keyword, options.deselect, options.ignore, options.ignore_glob))
        is_partial |= bool(getattr(options, "lf", False) or getattr(options, "collectonly", False))
        if is_partial or self.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
            return "only some of the tests were chosen"
        return "not every test passed" if exitstatus else None

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        if not self.seconds:
            return
        summary = self.summary()
        terminalreporter.section(f"slowest {len(summary['slowest'])} tests")
        for test, seconds in summary["slowest"].items():
            terminalreporter.write_line(f"{seconds:7.1f} s  {test}")
        kinds = ", ".join(f"{kind} {seconds:.0f} s" for kind, seconds in summary["test_seconds"].items())
        terminalreporter.write_line(f"{summary['wall_seconds']:.0f} s in total; by kind of test: {kinds}")
        if (file := self.config.option.record) is None:
            return
        if reason := self.why_not_recorded(exitstatus):
            terminalreporter.write_line(f"{file} was not written: {reason}")
        else:
            from benchmarks.machine import commit, hardware  # imports torch

            record = {"commit": commit(), "hardware": hardware(), **summary}
            file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            terminalreporter.write_line(f"wrote {file}")
