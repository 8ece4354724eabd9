"""Finds a Chromium for the tests of pages, and installs one where that needs no question.

Run as a program it says in a sentence what it did. A machine that can't have a browser is no failure: the tests of
pages are skipped there, and fail in CI.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Commands of Chromium, as distributions name it; the first, which has no window, is quicker."""
PACKAGES = NAMES[:2]
DOWNLOAD_SECONDS = 180
PACKAGE_SECONDS = 600
"""Time limits. A package manager that is stopped leaves half a package, so it is given long."""

Run = Callable[[Sequence[str], float], bool]
"""Whether a command succeeded within so many seconds."""


def on_path() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright: Playwright) -> Browser:
    """Starts the system's browser, else, or where that is broken, the one that Playwright downloaded."""
    with suppress(Error):
        if installed := on_path():
            return playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
    return playwright.chromium.launch(args=["--no-sandbox"])


def starts() -> bool:
    """Whether there is a browser that runs: a download may lack the system's libraries."""
    with suppress(Error), sync_playwright() as playwright:
        launch(playwright).close()
        return True
    return False


def succeeds(command: Sequence[str], seconds: float) -> bool:
    nothing = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
    except OSError:
        return False
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        with suppress(PermissionError):  # of sudo
            os.killpg(process.pid, signal.SIGTERM)
        return False


def privileges(run: Run) -> list[str] | None:
    """The words before a command that needs root's rights, or None without them."""
    if os.geteuid() == 0:
        return []
    return ["sudo", "-n"] if run(["sudo", "-n", "true"], 10) else None


def install(run: Run = succeeds, works: Callable[[], bool] = starts) -> tuple[bool, str]:
    """Whether there is a browser in the end, and a sentence about it."""
    if works():
        return True, f"The tests of pages use {on_path() or 'the Chromium of Playwright'}."
    if run([sys.executable, "-m", "playwright", "install", "chromium"], DOWNLOAD_SECONDS) and works():
        return True, "Playwright downloaded a Chromium for the tests of pages."
    why = "Playwright's own can't be downloaded"
    if shutil.which("apt-get") is None:
        return False, f"There is no browser for the tests of pages: {why}, and there is no apt-get."
    if (before := privileges(run)) is None:
        return (
            False,
            f"There is no browser for the tests of pages: {why}, and installing a package needs root's rights.",
        )
    apt = [*before, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    run([*apt, "update"], PACKAGE_SECONDS)  # where it fails, the lists at hand may do
    for package in PACKAGES:
        if run([*apt, "install", "-y", "--no-install-recommends", package], PACKAGE_SECONDS) and works():
            return True, f"The package {package} was installed for the tests of pages."
    return False, f"There is no browser for the tests of pages: {why}, and no package of it can be installed."


if __name__ == "__main__":
    print(install()[1])
