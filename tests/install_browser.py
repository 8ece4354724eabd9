"""Finds a Chromium for the browser tests, or installs one if that needs no interaction.

As a program, prints a sentence on what it did. A machine without a browser is no error: the browser tests are skipped
there, but fail in CI.
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
"""Commands of Chromium in the distributions; the first one is headless and faster."""
PACKAGES = NAMES[:2]
DOWNLOAD_SECONDS = 180
PACKAGE_SECONDS = 600
"""Time limits. That of the package manager is long, because an interrupted one leaves half a package."""

Run = Callable[[Sequence[str], float], bool]
"""Runs a command with a time limit in seconds; returns whether it succeeded."""


def on_path() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright: Playwright) -> Browser:
    """Starts the system's browser or, if there is none or it fails, the one that Playwright downloaded."""
    with suppress(Error):
        if installed := on_path():
            return playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
    return playwright.chromium.launch(args=["--no-sandbox"])


def starts() -> bool:
    """Returns whether a browser starts. A downloaded one may need system libraries that are missing."""
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
        with suppress(PermissionError):  # a sudo process belongs to root
            os.killpg(process.pid, signal.SIGTERM)
        return False


def privileges(run: Run) -> list[str] | None:
    """Returns the command prefix for root privileges, or None if they are not available."""
    if os.geteuid() == 0:
        return []
    return ["sudo", "-n"] if run(["sudo", "-n", "true"], 10) else None


def install(run: Run = succeeds, works: Callable[[], bool] = starts) -> tuple[bool, str]:
    """Installs a browser if there is none; returns whether one works, and a sentence about it."""
    if works():
        return True, f"The browser tests use {on_path() or 'the Chromium of Playwright'}."
    if run([sys.executable, "-m", "playwright", "install", "chromium"], DOWNLOAD_SECONDS) and works():
        return True, "Playwright downloaded a Chromium for the browser tests."
    why = "Playwright can't download a working Chromium"
    if shutil.which("apt-get") is None:
        return False, f"There is no browser for the browser tests: {why}, and there is no apt-get."
    if (prefix := privileges(run)) is None:
        return (
            False,
            f"There is no browser for the browser tests: {why}, and installing a package needs root privileges.",
        )
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    run([*apt, "update"], PACKAGE_SECONDS)  # if it fails, the existing package lists may do
    for package in PACKAGES:
        if run([*apt, "install", "-y", "--no-install-recommends", package], PACKAGE_SECONDS) and works():
            return True, f"The package {package} was installed for the browser tests."
    return False, f"There is no browser for the browser tests: {why}, and no Chromium package can be installed."


if __name__ == "__main__":
    print(install()[1])
