"""The planner in a browser: until the first plans are on the screen, and until a change is.

    python benchmarks/web_planner.py [--runs N] [--site build/site]

Real Chromium and the pages that ``make docs`` built, from a file server on this computer. A run
is a fresh browser with an empty cache. The page comes with the plan of the controls as they are at
first; that of a shared address is made by Python in the browser, which starts meanwhile. Seconds of
processor time, of all processes of the browser, are beside those that pass: on a machine that does
other things they say more.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from playwright.sync_api import Page, sync_playwright

MODELS = ("GLM-4V-9B", "GLM-4.1V-9B-Thinking", "GLM-4.6V", "GLM-OCR")
GPUS = ("2x24GiB", "2xT4", "4x16GiB", "24+16+12GiB", "8x8GiB", "8xA100-80GB")
OF_PAGE, SHARED = ("GLM-4V-9B", ""), ("GLM-OCR", "?model=GLM-OCR&gpus=2xT4")
"""Models of first plans, with the addresses that ask for them."""
OBJECTIVES = ("headroom", "balance", "fewest", "fastest")

# Resolves to the milliseconds until what the page shows has been painted.
CHANGE = """query => new Promise(done => {
    const start = performance.now();
    const painted = () => requestAnimationFrame(() => setTimeout(
        () => done(performance.now() - start)));
    const seen = new MutationObserver(() => { seen.disconnect(); painted(); });
    seen.observe(document.getElementById("planner-view"), {childList: true});
    history.pushState(null, "", "?" + query);
    dispatchEvent(new PopStateEvent("popstate"));
})"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *_: Any) -> None:
        """Does nothing."""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a folder; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def processor_seconds() -> float:
    """Return what the processes of browsers that this one has started have used."""
    total = 0.0
    for each in psutil.Process().children(recursive=True):
        try:
            if "chrom" in each.name():
                times = each.cpu_times()
                total += times.user + times.system
        except psutil.Error:  # it has ended
            continue
    return total


def first(page: Page, address: str, model: str, query: str) -> tuple[float, float]:
    """Open the page; return seconds until the plan of a model, and those of the processor."""
    used, start = processor_seconds(), time.perf_counter()
    page.goto(f"{address}/planner/{query}", wait_until="commit")
    page.locator("#planner-view .glm4v-devices", has_text=f"{model},").wait_for()
    return time.perf_counter() - start, processor_seconds() - used


def changes(page: Page) -> list[tuple[float, float, str]]:
    """Return milliseconds of each change, those of the processor, and what was asked."""
    found = []
    for model, gpus, objective in itertools.product(MODELS, GPUS, OBJECTIVES):
        query = urlencode({"model": model, "gpus": gpus, "objective": objective})
        used = processor_seconds()
        passed = page.evaluate(CHANGE, query)
        found.append((passed, 1e3 * (processor_seconds() - used), f"{model} {gpus} {objective}"))
    return found


def main() -> None:
    """Print medians with their range, and the slowest changes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--site", type=Path, default=Path("build/site"))
    arguments = parser.parse_args()
    if not (arguments.site / "planner" / "pyodide").is_dir():
        sys.exit(f"{arguments.site} has no planner: make docs builds it, with npm.")
    starts: dict[tuple[str, str], list[tuple[float, float]]] = {OF_PAGE: [], SHARED: []}
    made = []
    with served(arguments.site) as address, sync_playwright() as playwright:
        for model, query in [*starts] * arguments.runs:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(300_000)
            page.goto("about:blank")
            starts[model, query].append(first(page, address, model, query))
            if query:
                made += changes(page)
            browser.close()
    for (_, query), found in starts.items():
        for name, place in (("seconds", 0), ("of the processor", 1)):
            values = sorted(each[place] for each in found)
            print(
                f"first plan of {query or 'the page'}, {name}: {statistics.median(values):.1f} "
                f"({values[0]:.1f} to {values[-1]:.1f})"
            )
    for name, place in (("ms", 0), ("ms of the processor", 1)):
        times = sorted(float(each[place]) for each in made)
        print(
            f"{len(times)} changes, {name}: median {statistics.median(times):.0f}, 95 % below "
            f"{times[int(0.95 * len(times))]:.0f}, longest {times[-1]:.0f}"
        )
    for passed, used, asked in sorted(made, reverse=True)[:5]:
        print(f"  {passed:.0f} ms ({used:.0f} of the processor): {asked}")


if __name__ == "__main__":
    main()
