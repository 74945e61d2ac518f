"""Replicas on several machines, each a node of a Ray cluster on this one; and the end of Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import httpx
import pandas as pd
import psutil
import pytest

import glm4v_magic
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.events import RowDone
from glm4v_magic.session.session import Session

# Ray takes minutes for this on a busy machine.
pytestmark = [pytest.mark.nightly, pytest.mark.slow]

SECONDS = 900
ITEMS = [f"thing {number}" for number in range(200)]
PROMPT = "Is {{item}} red?"
HOW = {"temperature": 1, "seed": 5, "max_tokens": 6}
SMALL = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def expected():
    session = Session().load("demo")
    texts = [row.text for row in session.map(PROMPT, ITEMS, **HOW)]
    session.unload()
    return texts


def at_50(stream, act):
    """Read a map, and `act` after 50 rows."""
    for event in stream:
        if isinstance(event, RowDone) and event.progress.done == 50:
            act()


def patiently(start):
    """Start a machine; on a busy one Ray (2.60) gives up on its own processes after 30 s."""
    for _ in range(4):
        with contextlib.suppress(Exception):
            return start()
    return start()


def of_machine(replica):
    """Process of the machine on which a replica is: its node's raylet."""
    return psutil.Process(replica.process).parent().pid


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_replicas_are_spread_over_machines_and_one_that_is_lost_loses_no_row(expected, caplog):
    import ray
    from ray.cluster_utils import Cluster

    head = {**SMALL, "include_dashboard": False}
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        nodes = [patiently(lambda: cluster.add_node(**SMALL)) for _ in range(2)]
        session = Session().load("demo", replicas="max", cluster=cluster.address)
        replicas = session.status().info.replicas
        raylets = {of_machine(each): each.number for each in replicas}
        assert len(raylets) == len(replicas) == 3
        removed = nodes[0].all_processes["raylet"][0].process.pid
        stream = session.stream_map(PROMPT, ITEMS, **HOW)
        at_50(stream, lambda: cluster.remove_node(nodes[0], allow_graceful=False))
        assert [row.error for row in stream.result] == [None] * 200
        assert [row.text for row in stream.result] == expected
        lost = [each.number for each in session.status().info.replicas if each.lost]
        assert lost == [raylets[removed]]
        assert "is lost; the others answer." in caplog.text
        session.unload()
    finally:
        ray.shutdown()
        cluster.shutdown()


ASKING = """
import sys
import psutil
from PIL import Image
from glm4v_magic.core.events import RowDone
from glm4v_magic.session.session import Session
items = [Image.new("RGB", (300 + number, 300), "red") for number in range(200)]
session = Session().load("demo", replicas=2)
stream = session.stream_map("What colour is it?", items, max_tokens=6, save=sys.argv[1])
for event in stream:
    if isinstance(event, RowDone) and event.progress.done == 50 and sys.argv[2:]:
        for each in psutil.Process().children(recursive=True):
            if each.name() == "raylet":
                each.kill()
rows = list(stream.result)
print(sum(row.reused for row in rows), sum(row.done for row in rows))
"""


def test_rows_outlive_a_process_that_ray_ends_with_its_raylet(tmp_path):
    file = tmp_path / "rows.parquet"
    ended = subprocess.run([sys.executable, "-c", ASKING, file, "kill"], timeout=SECONDS)
    assert ended.returncode != 0
    assert file.with_name("rows.parquet.journal").exists() or file.exists()
    again = subprocess.run(
        [sys.executable, "-c", ASKING, file], timeout=SECONDS, capture_output=True, text=True
    )
    reused, done = map(int, again.stdout.split()[-2:])
    assert 50 <= reused < 200
    assert done == 200


def test_below_a_server_the_end_of_ray_ends_nothing_else(expected, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "glm4v_magic.server", "demo", "--replicas", "2"]
    url, file, kept = f"http://127.0.0.1:{port}/v1", tmp_path / "rows.parquet", 0
    for is_first in (True, False):
        server = subprocess.Popen([*command, "--port", str(port)], start_new_session=True)
        try:
            wait_for(url, server)
            session = glm4v_magic.load(url)
            stream = session.stream_map(PROMPT, ITEMS, **HOW, save=file)
            if is_first:
                with contextlib.suppress(EngineError):  # what waits at replicas may be answered
                    at_50(stream, partial(end_raylet, server.pid))
                kept = int(pd.read_parquet(file).error.isna().sum())
                assert kept >= 50
            else:
                rows = stream.follow()
                assert sum(row.reused for row in rows) == kept
                assert [row.text for row in rows] == expected
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(SECONDS)


def wait_for(url, server):
    for _ in range(SECONDS):
        assert server.poll() is None
        try:
            httpx.get(f"{url}/models", trust_env=False)
        except httpx.HTTPError:
            time.sleep(1)
        else:
            return
    pytest.fail("the server does not answer")


def end_raylet(process):
    (raylet,) = (
        each for each in psutil.Process(process).children(recursive=True) if each.name() == "raylet"
    )
    raylet.kill()
