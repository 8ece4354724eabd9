"""Where the browser tests get a browser: from the system, Playwright, the distribution, or not at all."""

import os
import sys

import install_browser
import pytest
from conftest import without_browser
from install_browser import PACKAGES, install, on_path, succeeds
from playwright.sync_api import Error


class Machine:
    """A simulated machine: the commands that succeed, the one that brings a browser, and those that were run."""

    def __init__(self, monkeypatch, *, succeed, brings="", commands=("apt-get",), is_root=False):
        self.succeed, self.brings, self.ran = succeed, brings, []
        self.has_browser = brings is None
        monkeypatch.setattr(install_browser.shutil, "which", lambda name: f"/bin/{name}" if name in commands else None)
        monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)

    def run(self, command, seconds):
        assert seconds <= 600
        self.ran.append(" ".join(command[:4] if command[0] == sys.executable else command))
        words = f"{self.ran[-1]} "
        success = any(word in words for word in self.succeed)
        self.has_browser |= success and bool(self.brings) and self.brings in words
        return success

    def install(self):
        return install(self.run, lambda: self.has_browser)


def test_a_browser_that_is_there_is_taken_and_nothing_is_run(monkeypatch):
    machine = Machine(monkeypatch, succeed=[], brings=None, commands=["google-chrome"])
    assert machine.install() == (True, "The browser tests use /bin/google-chrome.")
    assert not machine.ran


def test_the_systems_chromium_comes_before_another(monkeypatch):
    Machine(monkeypatch, succeed=[], commands=["google-chrome", "chromium"])
    assert on_path() == "/bin/chromium"


def test_playwrights_own_is_downloaded_first(monkeypatch):
    machine = Machine(monkeypatch, succeed=["playwright"], brings="playwright", is_root=True)
    assert machine.install() == (True, "Playwright downloaded a Chromium for the browser tests.")
    assert len(machine.ran) == 1


@pytest.mark.parametrize(("is_root", "first"), [(True, "env"), (False, "sudo -n env")])
@pytest.mark.parametrize("downloads", [True, False], ids=["a download that lacks libraries", "no download"])
@pytest.mark.parametrize("package", PACKAGES)
def test_then_a_package_is_installed_with_the_rights_at_hand(monkeypatch, is_root, first, downloads, package):
    succeed = ["sudo -n true", "apt-get -q update", f"recommends {package} ", *["playwright"] * downloads]
    machine = Machine(monkeypatch, succeed=succeed, brings=f"recommends {package} ", is_root=is_root)
    assert machine.install() == (True, f"The package {package} was installed for the browser tests.")
    apt = f"{first} DEBIAN_FRONTEND=noninteractive apt-get -q"
    tried = PACKAGES[: PACKAGES.index(package) + 1]
    assert machine.ran[-len(tried) - 1 :] == [
        f"{apt} update",
        *(f"{apt} install -y --no-install-recommends {name}" for name in tried),
    ]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"succeed": ["sudo"], "commands": []}, "there is no apt-get"),
        ({"succeed": []}, "needs root privileges"),
        ({"succeed": ["sudo -n true"]}, "no Chromium package can be installed"),
        ({"succeed": ["apt-get"], "is_root": True}, "no Chromium package can be installed"),
    ],
    ids=["no apt-get", "no rights", "no network", "a package that does not start"],
)
def test_without_any_of_these_the_reason_is_told(monkeypatch, settings, why):
    has_browser, message = Machine(monkeypatch, **settings).install()
    assert not has_browser and message.startswith("There is no browser") and why in message


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    script = f"exec 3> {tmp_path}/pipe; (sleep 10; echo alive >&3) & wait"
    assert not succeeds(["sh", "-c", script], 1)
    os.set_blocking(pipe, True)
    assert os.read(pipe, 9) == b""  # returns when no process holds the other end
    os.close(pipe)


@pytest.mark.parametrize(("command", "success"), [(["true"], True), (["false"], False), (["/no/such/command"], False)])
def test_a_command_succeeds_or_not_and_is_never_an_exception(command, success):
    assert succeeds(command, 60) == success


@pytest.mark.parametrize(("ci", "outcome"), [("true", "failed"), ("", "skipped")])
def test_without_a_browser_tests_of_pages_fail_in_ci_and_are_skipped_elsewhere(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    error = pytest.fail.Exception if outcome == "failed" else pytest.skip.Exception
    with pytest.raises(error, match=r"no Chromium starts.*Executable doesn't exist"):
        without_browser(Error("Executable doesn't exist\nmore"))
