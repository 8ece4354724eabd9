"""The address of the Ray that a job joins and the folder of a Ray that it starts, with checks that fail early."""

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
"""Seconds within which a running Ray must accept a connection, and again within which it must respond."""
SHORT_FOLDER = "/tmp/ray"  # noqa: S108 - Ray's own default, which Ray creates
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Maximum bytes of the path of a Unix socket."""
SESSION_SOCKET = "/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""Longest path of a socket below Ray's folder."""
LOCAL_REMEDY = "set RAY_ADDRESS=local to start Ray for this job on this machine"


def find_ray() -> str | None:
    """Returns the address of the Ray to join: RAY_ADDRESS, else the one that `ray start` recorded on this machine.

    Returns None if the job should start its own Ray. Raises UserError if RAY_ADDRESS is not an address or does not
    answer, or if it is `auto` and no Ray runs on this machine. The recorded address of a stopped Ray is skipped with a
    warning, because Ray itself would retry it for a quarter of an hour.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address == "local":
        return None
    if address and address != "auto":
        if not re.fullmatch(r"(ray://)?[^/\s]+:\d{1,5}", address):
            raise UserError(f"RAY_ADDRESS={address} is not an address like HOST:6379: correct it, or {LOCAL_REMEDY}")
        if not answers(address.removeprefix("ray://")):
            raise UserError(f"no Ray answers at RAY_ADDRESS={address}: start it there, or {LOCAL_REMEDY}")
        return address
    recorded = read_ray_address() or None
    if address == "auto" and not (recorded and answers(recorded)):
        raise UserError(f"RAY_ADDRESS=auto, but no Ray runs on this machine: run `ray start --head`, or {LOCAL_REMEDY}")
    if recorded and not answers(recorded):
        log.warning(
            "no Ray answers at %s, the address in %s: that Ray has stopped. Starting Ray for this job on this machine; "
            "run `ray stop` to clear the address",
            recorded,
            get_ray_address_file(None),
        )
        return None
    return recorded


def answers(address: str) -> bool:
    """Returns whether a gRPC server answers at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError, ValueError):  # unreachable, an invalid port or an unknown host
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
    """Returns the folder for a Ray that this job starts: Ray's own choice, or `/tmp/ray` if that can't be used.

    Raises UserError if neither can be used.
    """
    default = get_default_ray_temp_dir()
    reason = folder_problem(default)
    if reason is None:
        return default
    if default == SHORT_FOLDER or folder_problem(SHORT_FOLDER):
        max_bytes = LONGEST_SOCKET - len(SESSION_SOCKET) - len("/ray")
        raise UserError(
            f"Ray can't keep its files in {default}: {reason}; set RAY_TMPDIR to a writable folder with a path of at "
            f"most {max_bytes} bytes"
        )
    log.info("Ray keeps its files in %s, not in %s: %s", SHORT_FOLDER, default, reason)
    return SHORT_FOLDER


def folder_problem(folder: str) -> str | None:
    """Returns why Ray can't keep its files in a folder, or None if it can."""
    if len(os.fsencode(folder + SESSION_SOCKET)) > LONGEST_SOCKET:
        return "its path is too long for Ray's sockets"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
