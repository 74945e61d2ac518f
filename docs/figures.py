"""Figures of the pages: plans, drawn to scale by the code that draws them in a notebook.

mkdocs calls the functions. A line ``{{ devices GLM-4V-9B --gpus 2x24GiB }}`` becomes what
``%glm4v devices`` shows for these arguments, and ``split.svg`` is that of the notebooks.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.notebook.command_line import parse, split
from glm4v_magic.notebook.commands.devices import devices
from glm4v_magic.notebook.commands.plan import as_options, placement_options
from glm4v_magic.notebook.draft import draw
from glm4v_magic.notebook.render.plans.device_map import device_map_html

SPLIT = Path(__file__).parent.parent / "notebooks" / "split.svg"

_LINE = re.compile(r"^\{\{ devices (.*) \}\}$", re.MULTILINE)
_LONG = re.compile(r"<code>[^<]{32,}</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the drawing of the notebooks; called by mkdocs."""
    files.append(File.generated(config, "images/split.svg", content=SPLIT.read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in the plans; called by mkdocs."""
    return _LINE.sub(lambda found: drawn(found[1]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Let long code go on in the next line behind a dot, not anywhere; called by mkdocs."""
    return _LONG.sub(lambda found: re.sub(r"(?<=[.(*])(?=\w)", "<wbr>", found[0]), html)


def drawn(line: str) -> str:
    """Return the plan for the arguments of ``%glm4v devices``."""
    arguments = parse(devices, split(line))
    model, options = architecture(arguments.model), as_options(placement_options(arguments))
    view, _ = draw(model, options)
    shown = " ".join(device_map_html(view).split("\n"))
    return f'<div class="plan" markdown="0">{shown}</div>\n\n`%glm4v devices {line}`'
