"""Tests of the progress of a long job, on a simulated clock."""

import io
import re
import threading

import pytest

from hwr_ray.cluster import progress as progress_module
from hwr_ray.cluster.progress import Progress, log_elapsed


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_rate_and_the_time_left_count_from_the_first_items_of_this_run(clock):
    progress = Progress("images", lambda: 10_000, done=3900)  # of an earlier run
    clock.now += 500  # while Ray's workers start
    progress.advance(100)
    assert progress.line(0.0) == "4,000 of 10,000 images"
    progress.advance(1000)
    assert progress.line(20.0) == "5,000 of 10,000 images, 50 a second, 0:01:40 left"


def test_a_loss_counts_anew_from_what_remains(clock):
    progress = Progress("lines", lambda: 1000)
    for number in (100, 100, -50, 60):  # workers were lost, with their progress since the last checkpoint
        clock.now += 10
        progress.advance(number)
    assert progress.line(clock.now - progress.start) == "210 of 1,000 lines, 6.0 a second, 0:02:12 left"


def test_while_the_total_is_not_known_nothing_is_said_of_what_is_left(clock):
    totals = [None, 3000]
    progress = Progress("images", lambda: totals[0])
    progress.advance(0)
    progress.advance(1)
    progress.advance(1500)
    assert progress.line(3.0) == "1,501 images, 500 a second"
    totals.pop(0)
    assert progress.line(3.0) == "1,501 of 3,000 images, 500 a second, 0:00:03 left"


def test_before_anything_is_done_no_rate_is_told():
    assert Progress("images", lambda: 7).line(5.0) == "0 of 7 images"


def test_a_log_gets_a_line_each_ten_seconds(clock, caplog):
    caplog.set_level("INFO")
    progress = Progress("images", lambda: 100)
    for second in range(1, 26):
        clock.now += 1
        progress.advance(1)
        assert len(caplog.messages) == second // 10
    assert caplog.messages[1] == "20 of 100 images, 1.0 a second, 0:01:20 left"


def test_what_takes_long_is_named_each_ten_seconds_until_it_is_over(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(progress_module, "LOG_SECONDS", 0.01)
    is_logged = threading.Event()
    monkeypatch.setattr(progress_module.log, "info", lambda *args: is_logged.set() if "starting Ray" in args else None)
    with log_elapsed("starting Ray"):
        assert is_logged.wait(60)
    is_logged.clear()
    assert not is_logged.wait(0.1)


def test_a_terminal_gets_a_bar_that_is_redrawn_each_second_and_lines_above_it(clock, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Progress("images", lambda: 100, done=20) as progress:
        for _ in range(8):
            clock.now += 0.5
            progress.advance(5)
        progress.say("epoch [1/2]")
    drawn = re.findall(r"(\d+) of 100 images", terminal.getvalue())
    assert list(dict.fromkeys(drawn)) == ["20", "30", "40", "50", "60"]
    assert "epoch [1/2]\n" in terminal.getvalue()
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is shown again
    assert caplog.messages == []


def test_a_log_gets_lines_and_no_bar(caplog):
    caplog.set_level("INFO")
    with Progress("images", lambda: 100) as progress:
        progress.say("epoch [1/2]")
    assert caplog.messages == ["epoch [1/2]"]
