"""Smoke test of an installed wheel: the extension loads, and the demo models answer.

    python -I tests/wheel.py notebooks/shapes.png

-I keeps the current folder off the path, so that the package comes from the environment.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from importlib.metadata import files, version
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent


def main(photo: Path) -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    import glm4v_magic

    package = Path(glm4v_magic.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not the installed package"
    assert package != SOURCES / "glm4v_magic"
    assert version("glm4v_magic") == glm4v_magic.__version__
    assert "glm4v_magic/py.typed" in {str(file) for file in files("glm4v_magic") or ()}
    assert not [file for file in files("glm4v_magic") or () if file.parts[0] in {"tests", "docs"}]

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
        shell.run_line_magic("load_ext", "glm4v_magic")
        cell = f'%%glm4v "{photo}" -o answer --temperature 0\nWhat colour is the circle?'
        shell.run_cell(cell).raise_error()
        assert shell.user_ns["answer"].text == "The circle is red."
        second = glm4v_magic.load("demo-4.6v", gpus="cpu")
        assert (
            second.ask("What shape is blue?", images=[photo]).text == "The blue shape is a square."
        )
    size = sum(file.stat().st_size for file in package.rglob("*") if file.suffix != ".pyc")
    sys.stdout.write(f"glm4v_magic {version('glm4v_magic')}: {size / 1e6:.1f} MB of files\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
