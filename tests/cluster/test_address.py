"""Tests of environments in which Ray can't be joined or started: a clear error, or a way around, within seconds."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from hwr_ray.cluster import address as ray_address
from hwr_ray.cluster.address import LONGEST_SOCKET, SESSION_SOCKET, answers, find_ray, own_folder
from hwr_ray.errors import UserError


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Removes the address and sets a temporary folder for the test."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray_address, "ANSWER_SECONDS", 0.5)


@pytest.fixture
def dead_address():
    """The address of a local port where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def silent_address():
    """The address of a port that accepts connections and never responds, like that of a stopped head."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def live_address():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def record(folder: Path, address: str) -> None:
    """Writes the address of a head like `ray start`."""
    (folder / "ray").mkdir()
    (folder / "ray/ray_current_cluster").write_text(address)


def test_only_a_server_that_speaks_answers(live_address, dead_address, silent_address):
    assert answers(live_address)
    assert not answers(dead_address)
    assert not answers(silent_address)
    assert not answers("no.such.host.invalid:6379")
    assert not answers("127.0.0.1:99999")
    assert not answers("a..b:6379")


def test_a_running_ray_is_found_where_ray_start_left_its_address(live_address, tmp_path, monkeypatch):
    assert find_ray() is None
    record(tmp_path, live_address)
    assert find_ray() == live_address
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert find_ray() == live_address
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_ray() is None


@pytest.mark.parametrize("content", ["", "head", "a..b:6379"])
def test_an_address_file_that_holds_no_address_stops_no_job(content, tmp_path):
    record(tmp_path, content)
    assert find_ray() is None


def test_auto_where_no_ray_runs_is_refused(dead_address, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match="RAY_ADDRESS=auto, but no Ray runs on this machine"):
        find_ray()
    record(tmp_path, dead_address)
    with pytest.raises(UserError, match="RAY_ADDRESS=auto, but no Ray runs on this machine"):
        find_ray()


@pytest.mark.parametrize("kind", ["dead", "silent"])
def test_the_address_of_a_head_that_is_gone_is_named_and_passed_over(kind, tmp_path, caplog, request):
    address = request.getfixturevalue(f"{kind}_address")
    record(tmp_path, address)
    assert find_ray() is None
    assert f"no Ray answers at {address}, the address in {tmp_path}/ray/ray_current_cluster" in caplog.text


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_a_named_address_that_does_not_answer_is_refused(prefix, dead_address, live_address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", prefix + dead_address)
    with pytest.raises(UserError, match=f"no Ray answers at RAY_ADDRESS={prefix}{dead_address}: .*RAY_ADDRESS=local"):
        find_ray()
    monkeypatch.setenv("RAY_ADDRESS", prefix + live_address)
    assert find_ray() == prefix + live_address


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "head", "head:port", ":6379", "a b:1"])
def test_what_is_no_address_is_refused(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="is not an address like HOST:6379"):
        find_ray()


def test_a_temporary_folder_whose_path_is_too_long_gives_way_to_a_short_one(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(ray_address, "SHORT_FOLDER", short := str(tmp_path / "r"))
    monkeypatch.setattr(ray_address, "LONGEST_SOCKET", len(SESSION_SOCKET) + len(short))
    assert own_folder() == short
    assert f"Ray keeps its files in {short}, not in {tmp_path}/ray: its path is too long" in caplog.text
    monkeypatch.setattr(ray_address, "SHORT_FOLDER", str(tmp_path / "longer"))
    with pytest.raises(UserError, match="set RAY_TMPDIR to a writable folder with a path of at most"):
        own_folder()


def test_a_temporary_folder_that_cannot_be_written_gives_way_to_a_short_one(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_address, "LONGEST_SOCKET", 10_000)
    monkeypatch.setattr(ray_address, "SHORT_FOLDER", short := str(tmp_path / "r"))
    (tmp_path / "file").touch()
    for folder in ("/proc/nothing", f"{tmp_path}/file"):
        monkeypatch.setenv("RAY_TMPDIR", folder)
        assert own_folder() == short
    monkeypatch.setattr(ray_address, "SHORT_FOLDER", "/proc/r")
    with pytest.raises(UserError, match=f"Ray can't keep its files in {tmp_path}/file/ray: .*set RAY_TMPDIR"):
        own_folder()


def test_a_path_that_is_just_short_enough_holds_a_socket(tmp_path):
    """LONGEST_SOCKET is the kernel's own limit."""
    longest = LONGEST_SOCKET - len(SESSION_SOCKET)
    for length, fits in ((longest, True), (longest + 1, False)):
        path = "/tmp/" + "x" * (length - len("/tmp/")) + SESSION_SOCKET  # noqa: S108
        with socket.socket(socket.AF_UNIX) as unix_socket:
            try:
                unix_socket.bind(path)
            except FileNotFoundError:
                is_short = True
            except OSError as error:
                is_short = "too long" not in str(error)
        assert is_short == fits
