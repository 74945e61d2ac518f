"""The search of the pages: what is in front of its worker; mkdocs calls `on_post_build`."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

QUERY = Path(__file__).parent / "search_query.js"


def on_post_build(config: MkDocsConfig) -> None:
    """Have the worker take options for what they are; called by mkdocs."""
    folder = Path(config.site_dir) / "assets" / "javascripts" / "workers"
    workers = list(folder.glob("search.*.js"))
    if len(workers) != 1:
        raise PluginError(f"{folder} has {len(workers)} workers of the search, not 1.")
    (worker,) = workers
    theirs = worker.read_text(encoding="utf-8")
    worker.write_text(f"{QUERY.read_text(encoding='utf-8')}\n{theirs}", encoding="utf-8")
