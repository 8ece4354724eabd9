"""Fixtures and helpers of the tests: small images, a small model, a small disk, a browser and a Ray cluster."""

import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import boto3
import cv2
import install_browser
import numpy as np
import pandas as pd
import pytest
import ray
import torch
from job_runs import ROOT
from moto.server import ThreadedMotoServer
from playwright.sync_api import Browser, Error, Page, sync_playwright
from ray._private.node import Node
from ray.cluster_utils import Cluster

from hwr_ray.cluster.connection import OWN_RAY, connect
from hwr_ray.images.lines import Canvas
from hwr_ray.model.architecture import ModelSettings
from hwr_ray.recognition.bundle import Bundle, new_model, save_bundle
from hwr_ray.text.codec import Codec

pytest_plugins = ["suite", "pytester"]
TINY_MODEL = ModelSettings(conv_widths=(4, 4, 8, 8), gru_size=8, dropout=0.1)
TINY_CANVAS = Canvas(16, 64)
PAGES = {
    str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
}
"""The README and the documentation."""
WIDTHS = {"desk": (1280, 1000), "phone": (390, 844)}
"""(width, height) in pixels of the viewports that pages must fit."""
SCREENSHOTS = ROOT / "build/screenshots"
"""Folder for screenshots of the browser tests, for inspection."""


def blocks(text: str, language: str) -> list[tuple[str | None, str]]:
    """Returns the fenced blocks of a page, each with the reason why no test runs it, or None."""
    pairs = re.findall(rf"(?:^<!-- not run: ([^\n]*) -->\n)?^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(reason or None, block) for reason, block in pairs]


def commands(block: str) -> list[str]:
    """Returns the commands of a shell block, without comments and without the loop around them."""
    lines = (line.partition("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    return [" ".join(line.split()) for line in lines if line and not re.match(r"(for .* do|done)$", line)]


def documented(command: str, **replaced: object) -> list[str]:
    """Returns the job and the arguments of a command, which must appear literally in the documentation.

    `replaced` maps arguments to others, such as temporary paths. Tests append arguments that shorten the run.
    """
    known = {line for text in PAGES.values() for _, block in blocks(text, "sh") for line in commands(block)}
    assert f"python {command}" in known, f"no page has: python {command}"
    script, *arguments = command.split()
    return [Path(script).stem, *(str(replaced.get(argument, argument)) for argument in arguments)]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Limits torch to one thread: threads wait for each other on busy cores, and tiny models gain nothing from them."""
    torch.set_num_threads(1)


REPORT_INTERVAL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
"""Environment variable: the seconds after which Ray Train fetches the workers' reports, 2 by default. A worker has
one pending report, and the next one waits for it."""


@pytest.fixture(scope="session", autouse=True)
def quick_reports() -> Iterator[None]:
    """Shortens the report interval: an epoch of the tests takes half a second and would wait for up to two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(REPORT_INTERVAL, "0.1")
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Lets Ctrl-C reach the jobs that tests start, even if a shell runs the tests in the background and ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def draw_text() -> Callable[..., np.ndarray]:
    """A function that draws a text as a grey image (height, width) uint8, dark on 230."""

    def draw(text: str, *, height: int = 16, width: int = 64) -> np.ndarray:
        image = np.full((height, width), 230, np.uint8)
        return cv2.putText(image, text, (2, height - 4), cv2.FONT_HERSHEY_SIMPLEX, height / 40, 20, 1)

    return draw


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """A folder with a short path for a Ray from `ray start`: the path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hwr-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


EASY_TEXTS = ["".join(letters) for letters in product("ABE", repeat=3)]
"""Texts that a tiny model learns to recognize within a minute, in images of 16x64 pixels."""


def draw_lines(folder: Path, draw_text: Callable[..., np.ndarray], texts: list[str]) -> tuple[Path, Path]:
    """Writes images of the texts and their labels. Returns the CSV and the image folder."""
    images, csv = folder / "images", folder / "labels.csv"
    images.mkdir(parents=True)
    for number, text in enumerate(texts):
        cv2.imwrite(str(images / f"{number}.png"), draw_text(text))
    labels = pd.DataFrame({"FILENAME": [f"{i}.png" for i in range(len(texts))], "IDENTITY": texts})
    labels.to_csv(csv, index=False)
    return csv, images


def draw_easy_lines(folder: Path, draw_text: Callable[..., np.ndarray], **numbers: int) -> Path:
    """Writes the given number of easy lines for each split, in Kaggle's layout."""
    for split, number in numbers.items():
        texts = [EASY_TEXTS[i * 7 % len(EASY_TEXTS)] for i in range(number)]
        csv, images = draw_lines(folder / "drawing", draw_text, texts)
        csv.rename(folder / f"written_name_{split}_v2.csv")
        (folder / f"{split}_v2").mkdir()
        images.rename(folder / f"{split}_v2/{split}")
    return folder


def new_tiny_bundle() -> Bundle:
    """Returns a bundle with random weights, in evaluation mode, whose nonsense differs between images."""
    torch.manual_seed(5)
    codec = Codec("ABC")
    model = new_model(TINY_MODEL, codec, TINY_CANVAS)
    noise = (torch.rand(8, 1, TINY_CANVAS.height, TINY_CANVAS.width) > 0.8).float()
    with torch.no_grad():
        for _ in range(20):  # initializes the batch statistics
            model(noise)
        for weight in (*model.gru.parameters(), model.classifier.weight, model.classifier.weight):
            weight.mul_(3)
        model.classifier.bias.sub_(model.eval()(noise)[0].mean((0, 1)))  # otherwise one class wins everywhere
    return Bundle(
        model=model.eval(), settings=TINY_MODEL, codec=codec, canvas=TINY_CANVAS, training={"figures": [1, 2.5]}
    )


@pytest.fixture
def tiny_bundle() -> Bundle:
    return new_tiny_bundle()


@pytest.fixture
def bundle_path(tiny_bundle: Bundle, tmp_path: Path) -> str:
    path = str(tmp_path / "bundle")
    save_bundle(tiny_bundle, path)
    return path


@pytest.fixture(scope="module")
def bucket():
    """A client of an S3 server with one bucket. The environment refers to the server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
    server.stop()


def keys(client, prefix: str) -> list[str]:
    """Returns the keys below a prefix from an independent client, without the empty objects that represent folders."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    return sorted(o["Key"] for page in pages for o in page.get("Contents", []) if not o["Key"].endswith("/"))


class SmallDisk:
    """A disk of a few kilobytes, which `mount("remount,size=...k")` enlarges."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 64 kB. Skips the test if this process may not mount one."""
    disk = SmallDisk(tmp_path / "disk")
    disk.path.mkdir()
    try:
        disk.mount("size=64k")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no permission to mount a small disk: {error}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.path)], check=True)


def free_port() -> int:
    """Returns a free port outside the ranges of Ray's workers and of Linux's ephemeral ports.

    Ray opens many of those between the choice of a port and its use.
    """
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket() as bound, suppress(OSError):
            bound.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None, timeout: float = 300) -> None:
    """Waits until a condition holds. Fails if the process ends first or the time is over."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def without_browser(error: Error) -> NoReturn:
    """Skips the tests of pages, or fails them in CI."""
    reason = f"no Chromium starts, and make test could not install one: {error.message.splitlines()[0]}"
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            chromium = install_browser.launch(playwright)
        except Error as error:
            without_browser(error)
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Browser, url: str, size: tuple[int, int], *, is_dark: bool = False) -> Iterator[Page]:
    """Opens a page. It must report no error, request nothing from elsewhere and, in the end, not scroll sideways."""
    width, height = size
    scheme, problems = "dark" if is_dark else "light", []
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or problems.append(request.url))
    try:
        page.goto(url)
        yield page
        check_width(page)
        assert not problems
    finally:
        page.close()


def check_width(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"], page.url


def screenshot(page: Page, name: str, *, whole: bool = False) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=whole)


def check_report(browser: Browser, path: Path, name: str) -> None:
    """Checks that a report suits a desktop and a phone, light and dark, shows all its images and fits into a mail."""
    assert path.stat().st_size < 5_000_000
    for width, size in WIDTHS.items():
        for is_dark in (False, True):
            with opened(browser, path.as_uri(), size, is_dark=is_dark) as page:
                pictures = page.locator("img")
                pictures.evaluate_all("all => all.forEach(image => image.loading = 'eager')")
                pictures.evaluate_all("all => Promise.all(all.map(image => image.decode()))")  # fails for a damaged one
                assert pictures.count()
                screenshot(page, f"report-{name}-{width}{'-dark' * is_dark}", whole=True)


NODE = {
    "num_cpus": 2,
    "object_store_memory": 100 << 20,
    "setup_worker_path": str(ROOT / "tests/setup_worker.py"),
    "no_monitor": True,
}
"""Settings of a node of the session's cluster, without an autoscaler. A sweep needs at least two CPUs."""
STARTS = 5
"""Attempts to start a node: Ray gives up if its agents need more than 15 seconds, as on a busy machine."""
QUICK = {
    "enable_worker_prestart": False,
    "worker_niceness": 0,
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
}
"""Settings of Ray: no prestarted workers, and the loss of a node is detected within a few seconds instead of twenty."""


def started(start: Callable[..., Node], **settings: Any) -> Node:
    """Starts a node and returns it. Its agent gets a free port, because Ray retries the default port for seconds."""
    for attempt in range(STARTS):
        try:
            return start(dashboard_agent_listen_port=free_port(), **settings)
        except Exception as error:
            if "timed out during startup" not in str(error) or attempt == STARTS - 1:
                raise
    raise AssertionError


@pytest.fixture(params=["local", "file://", "memory://"])
def storage_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A local folder, as a path and as a URI, and a folder in fsspec's memory."""
    if request.param == "memory://":
        return f"memory://{tmp_path}"
    return str(tmp_path) if request.param == "local" else f"file://{tmp_path}"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A cluster of one node that all jobs of the session join. This process has joined it like a job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT)]))  # the workers import latches
        for name, value in OWN_RAY.items():
            patch.setenv(name, value)
        with new_cluster(num_cpus=2) as cluster:
            yield cluster


@contextmanager
def new_cluster(*, num_cpus: int) -> Iterator[Cluster]:
    """Starts a cluster of one node that this process and its jobs join. It has no dashboard, as no job may need one."""
    cluster = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        try:
            started(cluster.add_node, **NODE | {"num_cpus": num_cpus, "include_dashboard": False}, _system_config=QUICK)
            patch.setenv("RAY_ADDRESS", cluster.address)
            connect()
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def second_node(ray_cluster: Cluster) -> Iterator[Node]:
    """A second node in the session's cluster, which a test may kill. An elastic job uses it from its start."""
    node = started(ray_cluster.add_node, **NODE)
    forget_requests()
    yield node
    if node in ray_cluster.list_all_nodes():
        ray_cluster.remove_node(node)
    wait_for(lambda: sum(info["Alive"] for info in ray.nodes()) == len(ray_cluster.list_all_nodes()))


def forget_requests() -> None:
    """Kills the actor that distributes a cluster's CPUs; the next job starts another.

    The actor looks for new nodes only every 20 seconds and keeps the requests of a killed driver for 3 minutes.
    """

    def coordinator() -> Any:
        try:
            return ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        except ValueError:
            return None

    if actor := coordinator():
        ray.kill(actor)
    wait_for(lambda: coordinator() is None)


@pytest.fixture(scope="module")
def ray_with_bucket(ray_cluster: Cluster, bucket: Any) -> Iterator[Any]:
    """The bucket. The jobs of this process forward its keys to their workers."""
    ray.shutdown()
    connect()
    yield bucket
    ray.shutdown()
    connect()
