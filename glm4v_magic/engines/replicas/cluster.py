"""A Ray cluster: the user's own, one at an address, or one that is started on this machine.

What the user has started is used as it is and never ended. One that is started here ends with the
last engine that uses it; it has no dashboard and sends no usage statistics. The user's own code may
end it earlier, so each engine keeps the connection that its replicas belong to.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import socket
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import psutil

from glm4v_magic.core.errors import EngineError, OptionError, reason
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.engines.replicas.layout import Machine
from glm4v_magic.held_interrupts import interrupt_held_back

__all__ = [
    "INSTALL",
    "connect",
    "connection",
    "leave",
    "machines",
    "read_cluster",
    "require_ray",
]

INSTALL = "Install it with: pip install 'glm4v_magic[ray]'"

_log = logging.getLogger(__name__)
_HERE = "local"
_ATTEMPTS = 3
_SECONDS_TO_CONNECT = 3.0
_SECONDS_TO_ANSWER = 10.0
_SECONDS_TO_ASK = 60.0
_START_OF_A_PROGRAM = 0.5  # seconds
_STORE_BYTES = 256 * 2**20
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
"""What is set while a cluster is started; its processes inherit it."""

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):([0-9]{1,5})")

_SETTINGS = 4
_HEADER_BYTES, _KIND_OF_FRAME = 9, 3
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])
"""How a client of HTTP/2, and so of gRPC, begins; the server's first frame is one of settings, too
(RFC 9113, 3.4)."""

_users = 0
"""Engines that use the cluster which was started or joined here."""

_ours = ""
"""The connection to it, as `connection` tells it."""

_raylets: list[psutil.Process] = []
"""Ray's own process for this machine, of a cluster that was started here."""


def require_ray() -> None:
    """Raise OptionError unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise OptionError("Replicas need Ray, which is not installed.", INSTALL)


def read_cluster(address: str) -> str:
    """Return an address as Ray takes it.

    Raises:
        OptionError: unless it is ``HOST:PORT`` or ``auto``.
    """
    text = address.strip()
    if text == "auto":
        return text
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found[2]) < 2**16:
        raise OptionError(
            f"{address!r} is not the address of a Ray cluster.",
            "Give its host and port, such as 10.0.0.5:6379, from a machine of the cluster; auto is "
            "the one that runs on this machine.",
        )
    return text


def connection() -> str:
    """Return what tells this process's connection to Ray from those before; empty without one."""
    import ray

    if not ray.is_initialized():
        return ""
    here = ray.get_runtime_context()
    return f"{here.get_node_id()} {here.get_job_id()}"


def connect(address: str | None) -> str:
    """Connect to a cluster, unless the user is connected to it already.

    Args:
        address: from `read_cluster`; ``None`` starts one on this machine, unless the user is
            connected to one.

    Returns:
        The connection, as for `leave`.

    Raises:
        EngineError: if there is none at the address.
        OptionError: if this process is connected to another one.
    """
    global _users, _ours
    import ray

    _forget_what_was_ended()
    if _users and _has_ended():
        _shut_down()
        _users = 0
    if ray.is_initialized():
        _require_same(address)
        if _users:
            _users += 1
        return connection()
    if address not in (None, "auto"):
        _require_open(str(address))
    before = set(psutil.Process().children(recursive=True))
    for attempt in range(_ATTEMPTS):
        try:
            _begin(address)
        except KeyboardInterrupt:
            _tell_of_the_end()
            _end_begun(before)
            raise
        except Exception as error:
            _end_begun(before)
            # On a busy machine Ray's own processes are late now and then, and it gives up on them.
            if address is None and attempt + 1 < _ATTEMPTS:
                continue
            raise _not_there(address, error) from None
        else:
            break
    _hush(is_quiet=True)
    _raylets[:] = [each for each in _begun(before) if _name(each).startswith("raylet")]
    _users, _ours = 1, connection()
    return _ours


def _forget_what_was_ended() -> None:
    """Count no engines of a cluster that the user's own code has ended or left."""
    global _users
    if _users and connection() != _ours:
        _users = 0
        _hush(is_quiet=False)


def _end_begun(before: Container[psutil.Process]) -> None:
    """End a cluster that was half started: Ray itself forgets the processes that it had started.

    Args:
        before: processes of this one that were there before.
    """
    _shut_down()
    for each in _begun(before):
        with contextlib.suppress(psutil.Error):
            each.kill()


def _begun(before: Container[psutil.Process]) -> list[psutil.Process]:
    """Return the processes of Ray below this one that were not there before."""
    import ray

    found, of_ray = [], str(Path(ray.__file__).parent)
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if each not in before and any(of_ray in word for word in _command(each)):
                found.append(each)
    return found


def _command(process: psutil.Process) -> list[str]:
    """Return the command line of a process, also of one that is only just being started.

    Until the new program is in place, Linux shows no command line, or before that the one of
    the process that was forked.
    """
    ours, end = psutil.Process().cmdline(), time.monotonic() + _START_OF_A_PROGRAM
    while (words := process.cmdline()) in ([], ours) and time.monotonic() < end:
        if process.status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.001)
    return list(words)


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""


def _has_ended() -> bool:
    """Tell whether a cluster that was started or joined here has no machine any more."""
    import ray

    # Ray itself notices the end of a machine only after a while.
    for each in _raylets:
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.is_running() and each.status() != psutil.STATUS_ZOMBIE:
                return False
    return bool(_raylets) or not any(node["Alive"] for node in ray.nodes())


def _begin(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    with _quiet():
        if address is None:
            ray.init(
                address=_HERE,
                num_cpus=len(os.sched_getaffinity(0)),
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)


def _not_there(address: str | None, error: Exception) -> EngineError:
    where = "on this machine" if address in (None, "auto") else f"at {address}"
    if isinstance(error, ConnectionError):
        what = f"There is no Ray cluster {where} that this machine is part of."
    else:
        said = reason(error).removeprefix("Exception: ").rstrip(".")
        what = f"Ray did not start {where}: {said}."
    return EngineError(what, _start(address))


def _start(address: str | None) -> str:
    if address is None:
        return "Is this machine very busy, or short of memory?"
    return "Ray is started and joined with `ray start`; without an address it runs here."


def leave(joined: str, *, is_interrupted: bool = False) -> None:
    """End the use of a cluster by one engine.

    Args:
        joined: the engine's connection; nothing is done if it is over, or the user's own.
        is_interrupted: whether somebody waits for the end, who is told that it takes a while.
    """
    global _users

    _forget_what_was_ended()
    if _users and joined == _ours:
        _users -= 1
        if not _users:
            if is_interrupted:
                _tell_of_the_end()
            _shut_down()


def _shut_down() -> None:
    """End Ray, or leave it: an interrupt half-way would leave its processes behind."""
    import ray

    with interrupt_held_back(_tell_of_the_end):
        ray.shutdown()
        _hush(is_quiet=False)


def _tell_of_the_end() -> None:
    _log.warning("Stopping: Ray is being ended, which takes some seconds.")


def _hush(*, is_quiet: bool) -> None:
    """Keep Ray (2.60) from printing its own words about each process that ends, or let it again."""
    from ray._private import worker

    worker._worker_logs_enabled = not is_quiet


def _require_same(address: str | None) -> None:
    import ray

    if address in (None, "auto"):
        return
    here = ray.get_runtime_context().gcs_address
    if not _are_one(here, address):
        what = f"This process is connected to the Ray cluster at {here}, not to {address}."
        if _users:
            raise OptionError(what, code="other_cluster")
        raise OptionError(what, "Leave the address out, or call ray.shutdown() first.")


def _are_one(here: str, address: str) -> bool:
    """Tell whether two addresses lead to one place.

    Ray tells a number where a user gave a name, and this machine's in its network for a loopback.
    """
    (one, _, port), (other, _, other_port) = here.rpartition(":"), address.rpartition(":")
    if port != other_port:
        return False
    places, others = _numbers_of(one), _numbers_of(other)
    mine = {each.address for found in psutil.net_if_addrs().values() for each in found}
    return bool(places & others or (places & mine and others & mine))


def _numbers_of(host: str) -> set[str]:
    host = host.strip("[]")
    with contextlib.suppress(OSError, UnicodeError):  # the second of parts that no name has
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    return {host}


def _require_open(address: str) -> None:
    host, _, port = address.rpartition(":")
    place = host.strip("[]"), int(port)
    try:
        with socket.create_connection(place, _SECONDS_TO_CONNECT) as connection:
            is_ray = _speaks_grpc(connection)
    except OSError as error:
        raise EngineError(
            f"There is no Ray cluster at {address}: {reason(error)}.",
            "Is it running there? Leave the address out to use this machine alone.",
        ) from None
    if not is_ray:
        raise EngineError(
            f"There is no Ray cluster at {address}: something else answers there, or nothing.",
            "The port is that of the head node, 6379 by default; 8265 is the dashboard's.",
        )


def _speaks_grpc(connection: socket.socket) -> bool:
    """Tell whether a server speaks Ray's protocol.

    Ray itself (2.60) waits a minute for one that does not, and prints its own log meanwhile.
    """
    if os.environ.get("RAY_USE_TLS") == "1":
        return True  # whoever encrypts does not understand this
    connection.settimeout(_SECONDS_TO_ANSWER)
    connection.sendall(_HELLO)
    try:
        header = connection.recv(_HEADER_BYTES)
    except (TimeoutError, ConnectionError):
        return False
    return len(header) == _HEADER_BYTES and header[_KIND_OF_FRAME] == _SETTINGS


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    before = {name: os.environ.get(name) for name in _QUIET}
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)


def machines() -> tuple[Machine, ...]:
    """Return the machines of the cluster, with the GPUs that each of them reports.

    Raises:
        EngineError: if a machine with GPUs does not answer.
    """
    import ray

    found = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        resources = node["Resources"]
        gpus: tuple[GPU, ...] = ()
        if resources.get("GPU"):
            gpus = _gpus_of(node["NodeID"], node["NodeManagerAddress"])[: int(resources["GPU"])]
        cores = int(resources.get("CPU", 0))
        found.append(Machine(node["NodeID"], node["NodeManagerAddress"], cores, gpus))
    return tuple(found)


def _gpus_of(node: str, name: str) -> tuple[GPU, ...]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(_gpus_here).options(num_cpus=0, scheduling_strategy=there)
    try:
        gpus: tuple[GPU, ...] = ray.get(task.remote(), timeout=_SECONDS_TO_ASK)
    except ray.exceptions.RayError as error:
        # That of a task is a traceback of the machine, in colours; the cause is its last line.
        why = (str(error).strip().splitlines() or [""])[-1].strip().removesuffix(".")
        raise EngineError(
            f"{name} does not tell its GPUs: {why or reason(error)}.",
            "Is glm4v_magic installed there, in the same version?",
        ) from None
    return gpus


def _gpus_here() -> tuple[GPU, ...]:
    """Return the GPUs of the machine; a task without GPUs sees none unless this is undone."""
    from glm4v_magic.hardware.gpus import find_gpus

    hidden = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        return tuple(each.gpu for each in find_gpus())
    finally:
        if hidden is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden
