"""Peak memory of each notebook: its kernel, and the Jupyter server that runs it.

    python benchmarks/notebook_memory.py [NOTEBOOK ...]

For each notebook a JupyterLab server of its own is started, as Binder does, the server starts the
kernel, and every cell is run in it. "Peak" is the high-water mark of resident memory that Linux
keeps for a process (VmHWM in /proc/PID/status), read before the kernel is shut down; nothing is
sampled. Both are in the same container on Binder, so their sum is what counts there: at most
2 GB. Pages that both share are counted twice.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.blocking.client import BlockingKernelClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
LIMIT_MB = 2000
MEANT_TO_FAIL = "raises-exception"


@dataclass(frozen=True, slots=True)
class Server:
    """A running Jupyter server."""

    process: subprocess.Popen[bytes]
    address: str
    token: str
    runtime: Path

    def call(self, method: str, path: str, content: object = None) -> Any:
        """Send a request to the server's REST interface and return its answer."""
        request = urllib.request.Request(
            f"{self.address}/api/{path}",
            None if content is None else json.dumps(content).encode(),
            {"Authorization": f"token {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a notebook took.

    Attributes:
        kernel_mb: peak of the kernel.
        server_mb: peak of the server.
        seconds: from the first cell to the last, beside whatever else this machine does.
        cpu_seconds: CPU time of the kernel, its start included.
    """

    kernel_mb: float
    server_mb: float
    seconds: float
    cpu_seconds: float

    @property
    def both_mb(self) -> float:
        """The sum of the peaks."""
        return self.kernel_mb + self.server_mb


@contextmanager
def server() -> Iterator[Server]:
    """Start a JupyterLab server in the notebooks' folder; it ends with the block."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port, token = probe.getsockname()[1], secrets.token_hex(16)
        probe.close()
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
        command += [f"--port={port}", f"--IdentityProvider.token={token}"]
        command += [f"--ServerApp.root_dir={NOTEBOOKS}"]
        process = subprocess.Popen(
            command,
            env={**os.environ, "JUPYTER_RUNTIME_DIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started = Server(process, f"http://127.0.0.1:{port}", token, Path(folder))
        try:
            _wait_for(started)
            yield started
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_for(started: Server) -> None:
    for _ in range(240):
        try:
            started.call("GET", "status")
        except OSError:
            if started.process.poll() is not None:
                raise
            time.sleep(0.5)
        else:
            return
    raise TimeoutError("the server does not answer")


def peak_mb(pid: int) -> float:
    """Return the high-water mark of a process, in MB (powers of 1000)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, in user and in system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(path: Path) -> Measured:
    """Run a notebook."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    with server() as running:
        running.call("GET", f"contents/{path.name}?content=1")
        session = running.call(
            "POST",
            "sessions",
            {"path": path.name, "name": path.name, "type": "notebook",
             "kernel": {"name": "python3"}},
        )  # fmt: skip
        kernel = session["kernel"]["id"]
        client = BlockingKernelClient(
            connection_file=str(running.runtime / f"kernel-{kernel}.json")
        )
        client.load_connection_file()
        client.start_channels()
        try:
            # wait_for_ready takes a kernel that starts slowly for dead: it has no heartbeat yet
            client.kernel_info(reply=True, timeout=120)
            start = time.monotonic()
            for cell in cells:
                _run(client, cell)
            seconds = time.monotonic() - start
            answer = client.execute("", user_expressions={"pid": "__import__('os').getpid()"})
            reply = client.get_shell_msg(timeout=60)
            while reply["parent_header"]["msg_id"] != answer:
                reply = client.get_shell_msg(timeout=60)
            pid = int(reply["content"]["user_expressions"]["pid"]["data"]["text/plain"])
            return Measured(peak_mb(pid), peak_mb(running.process.pid), seconds, cpu_seconds(pid))
        finally:
            client.stop_channels()
            running.call("DELETE", f"sessions/{session['id']}")


def _run(client: BlockingKernelClient, cell: Any) -> None:
    reply = client.execute_interactive(
        cell.source, timeout=600, allow_stdin=False, output_hook=lambda _: None
    )
    content: Any = reply["content"]
    meant = MEANT_TO_FAIL in cell.metadata.get("tags", [])
    if (content["status"] != "ok") != meant:
        raise RuntimeError(f"{content.get('evalue', 'did not fail')} in:\n{cell.source}")


def main() -> int:
    """Print a line for each notebook; return 1 if one takes more than Binder gives."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    given = parser.parse_args().notebooks
    largest = 0.0
    print(
        f"{'peaks in MB':34}{'kernel':>8}{'server':>8}{'sum':>8}{'of 2 GB':>9}{'s':>6}{'CPU s':>7}"
    )
    for path in given or sorted(NOTEBOOKS.glob("*.ipynb")):
        found = measure(path.resolve())
        largest = max(largest, found.both_mb)
        print(
            f"{path.name:34}{found.kernel_mb:8.0f}{found.server_mb:8.0f}{found.both_mb:8.0f}"
            f"{found.both_mb / LIMIT_MB:9.0%}{found.seconds:6.0f}{found.cpu_seconds:7.0f}",
            flush=True,
        )
    return 0 if largest <= LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
