"""Which Ray a job joins, and where a Ray of its own keeps its files: environments that can't work are told at once."""

import logging
import os
import re
import socket
import sys
import tempfile
from pathlib import Path

import grpc
from ray._common.utils import get_default_ray_temp_dir, get_ray_address_file
from ray._private.utils import read_ray_address

from hwr_ray.errors import UserError

log = logging.getLogger(__name__)

ANSWER_SECONDS = 4
"""Seconds in which a running Ray must take a connection, and again in which it must speak."""
SHORT_FOLDER = "/tmp/ray"  # noqa: S108 - Ray's own default, which it makes for this user's processes
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes that the path of a Unix socket may have."""
SESSION_SOCKET = "/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""What Ray appends to its folder for the longest path of a socket."""
OWN = "RAY_ADDRESS=local starts a Ray for this job on this machine"


def find_ray() -> str | None:
    """The address of the Ray to join: RAY_ADDRESS, else what `ray start` left on this machine. None to start one.

    Raises UserError where RAY_ADDRESS is no address or does not answer, or is `auto` and no Ray runs here. An address
    that was left by a Ray that is gone is passed over with a warning: Ray itself would try it for a quarter of an hour.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return None
    if named and named != "auto":
        if not re.fullmatch(r"(ray://)?[^/\s]+:\d{1,5}", named):
            raise UserError(f"RAY_ADDRESS={named} is no address of a Ray, such as HOST:6379; {OWN}")
        if not answers(named.removeprefix("ray://")):
            raise UserError(f"no Ray answers at RAY_ADDRESS={named}: start it, or name another; {OWN}")
        return named
    left = read_ray_address() or None
    if named == "auto" and not (left and answers(left)):
        raise UserError(f"RAY_ADDRESS=auto, and no Ray runs on this machine: `ray start --head` starts one; {OWN}")
    if left and not answers(left):
        log.warning(
            "no Ray answers at %s, the address in %s: the Ray that wrote it is gone. Starting one for this job on this "
            "machine; `ray stop` clears the address",
            left,
            get_ray_address_file(None),
        )
        return None
    return left


def answers(address: str) -> bool:
    """Whether a gRPC server answers at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError, ValueError):  # nothing there, no such port, no such name
        return False
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True  # the handshake needs the cluster's certificates, which Ray checks itself
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True


def own_folder() -> str:
    """The folder for the files of a Ray that this job starts: Ray's own choice, or `/tmp/ray` where that can't be used.

    Raises UserError where neither can.
    """
    default = get_default_ray_temp_dir()
    reason = why_not(default)
    if reason is None:
        return default
    if default == SHORT_FOLDER or why_not(SHORT_FOLDER):
        room = LONGEST_SOCKET - len(SESSION_SOCKET) - len("/ray")
        raise UserError(
            f"Ray can't keep its files in {default}: {reason}; set RAY_TMPDIR to a folder that can be written, with a "
            f"path of at most {room} bytes"
        )
    log.info("Ray keeps its files in %s, not in %s: %s", SHORT_FOLDER, default, reason)
    return SHORT_FOLDER


def why_not(folder: str) -> str | None:
    """Why Ray can't keep its files in a folder, or None where it can."""
    if len(os.fsencode(folder + SESSION_SOCKET)) > LONGEST_SOCKET:
        return "its path is too long for Ray's sockets"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
