"""Execute notebooks from top to bottom, and show what was asked and answered.

    python notebooks/execute.py notebooks/01_quickstart.ipynb

The executed notebook and an HTML page of it are written to build/notebooks; the notebook itself
stays as it is, unless --in-place is given. The first cell that fails ends the run with status 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

OUTPUT = Path("build/notebooks")
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path) -> nbformat.NotebookNode:
    """Run all cells of a notebook in its own folder and return it with its outputs.

    Raises:
        CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    # Without widget state: what is saved must read well without a kernel and widgets.
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this run, of no use to a reader
        if cell.cell_type == "code":
            # A widget has a static twin beside it; without its kernel it is an empty box.
            cell.outputs = [each for each in cell.outputs if WIDGET not in each.get("data", {})]
    return notebook


def questions_and_answers(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, str]]:
    """Yield each cell that asks, and the plain text of what it showed."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and "%glm4v" in cell.source:
            yield cell.source, "\n".join(_plain_texts(cell))


def _plain_texts(cell: nbformat.NotebookNode) -> Iterator[str]:
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text.rstrip()
        elif "data" in output and "text/plain" in output.data:
            yield output.data["text/plain"].rstrip()


def write(notebook: nbformat.NotebookNode, name: str) -> tuple[Path, Path]:
    """Write a notebook and its HTML page to `OUTPUT` and return both paths."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    target = OUTPUT / name
    nbformat.write(notebook, target)
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
    html = target.with_suffix(".html")
    html.write_text(page, encoding="utf-8")
    return target, html


def main() -> int:
    """Run the notebooks of the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--in-place", action="store_true", help="also replace the notebook itself")
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        start = time.monotonic()
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            print(f"{path} failed.\n{error}", file=sys.stderr)
            return 1
        for question, answer in questions_and_answers(notebook):
            print("\n".join(f"  {line}" for line in question.splitlines()))
            print(f"{answer}\n" if answer else "")
        if arguments.in_place:
            nbformat.write(notebook, path)
        written, html = write(notebook, path.name)
        print(f"{path}: {time.monotonic() - start:.0f} s")
        print(f"executed notebook: {written.resolve()}")
        print(f"as a page:         {html.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
