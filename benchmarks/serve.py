"""How many more answers a second our server gives to many clients than to one.

    python benchmarks/serve.py [--clients N] [--tokens N] [--rounds N] [--checkpoint FOLDER]

The server and its clients are processes of their own. One client asks one question after the other;
then N clients do so at once. Both sides alternate, and the ratio is that of the medians.

By default with a checkpoint written here, of random weights in GLM-4V-9B's layout.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from larger import write_larger


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or Path(folder)
        if options.checkpoint is None:
            write_larger(checkpoint)
        command = [sys.executable, "-m", "glm4v_magic.server", str(checkpoint), "--port", "0"]
        command += ["--parallel", str(options.clients)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        ) as server:
            assert server.stdout is not None
            url = server.stdout.readline().partition(" is served at ")[2].partition(". ")[0]
            try:
                measure(url, options.clients, options.tokens, options.rounds)
            finally:
                server.terminate()


def measure(url: str, clients: int, tokens: int, rounds: int) -> None:
    """Print tokens per second of one client and of many, and their ratio."""
    rates(url, 1, tokens, 1)  # the first answers warm up
    one: list[float] = []
    many: list[float] = []
    for _ in range(rounds):
        one.append(rates(url, 1, tokens, 3))
        many.append(rates(url, clients, tokens, 2))
    first, second = statistics.median(one), statistics.median(many)
    print(f"1 client: {first:.1f} tokens/s; {clients} clients: {second:.1f} tokens/s")
    print(f"ratio {second / first:.2f}")


def rates(url: str, clients: int, tokens: int, times: int) -> float:
    """Return the tokens per second of all clients together."""

    def ask(client: int) -> int:
        count = 0
        with httpx.Client(trust_env=False, timeout=600) as http:
            for number in range(times):
                text = f"Tell me about number {client} and {number}."
                body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}
                answer = http.post(f"{url}/chat/completions", json=body | {"temperature": 0})
                count += answer.raise_for_status().json()["usage"]["completion_tokens"]
        return count

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        count = sum(pool.map(ask, range(clients)))
    return count / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
