"""`python -m glm4v_magic.remote_code.patch FOLDER`: make a checkpoint's own code consistent.

Needs Python 3.11 and libcst and nothing else, so that it runs where that code runs, in an
environment with transformers 4.42 to 4.48: ``pip install --no-deps . libcst`` in the folder of this
repository.

Exit status: 0 if every place is consistent now (or would be, with `--dry-run`), 1 if the folder or
one of transformers' copies of it cannot be patched, 2 if the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.options import of_command
from glm4v_magic.core.typed_options import argument_of, flags_of
from glm4v_magic.remote_code.copies import CodeFolders, code_folders
from glm4v_magic.remote_code.source_patch import FolderPatch, plan_patch, write_patch

__all__ = ["main", "patched"]

_DESCRIPTION = """\
Edit the code in a checkpoint folder of GLM-4V-9B (visual.py and modeling_chatglm.py), CogVLM2 or
CogAgent (visual.py) so that no split of the model over GPUs ends in "Expected all tensors to be on
the same device", and transformers' copies of it, which are what runs. The diff is shown, the
originals are kept as *.orig, and running it again changes nothing."""

_EPILOG = """\
That code runs with transformers 4.42 to 4.48. There, this program needs nothing but Python 3.11
and libcst. In the folder of this repository: pip install --no-deps . libcst

exit status: 0 done, or nothing to do; 1 the folder or a copy cannot be patched; 2 wrong command
line"""

_FIRST, _AFTER = (4, 42), (4, 49)
"""Versions of transformers that run the published code: from the first, before the second."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m glm4v_magic.remote_code.patch",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="the checkpoint folder, or an id of the hub that was downloaded: THUDM/glm-4v-9b",
    )
    for option in of_command("patch"):
        parser.add_argument(*flags_of(option), **argument_of(option))
    options = parser.parse_args(arguments)
    try:
        told = patched(options.folder, dry_run=options.dry_run)
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(told)
    return 0


def patched(folder: str | Path, *, dry_run: bool) -> str:
    """Patch a checkpoint's code and the copies of it; returns the diff, and a line for each place.

    Args:
        folder: the checkpoint folder, or the id of a repository in a cache.
        dry_run: whether to write nothing.

    Raises:
        CheckpointError: if a folder cannot be patched. Nothing is changed then, unless it is a copy
            that cannot be written.
    """
    found = code_folders(folder)
    plans, left = _plans(found)
    if not dry_run:
        plans = [write_patch(plan) for plan in plans]
    changed = any(plan.changed for plan in plans)
    parts = [text for plan in plans for text in _told(plan, named=len(plans) > 1)]
    parts += [f"{line}\n" for line in left]
    if not changed:
        parts.append("Nothing to do: every place is consistent already.\n")
    elif dry_run:
        parts.append("Dry run: nothing was written.\n")
    else:
        parts.append("Restart every Python process that has loaded this model: it keeps ")
        parts.append("the code that it has imported.\n")
    parts.append(f"{_about_transformers()}\n")
    return "".join(parts)


def _plans(found: CodeFolders) -> tuple[list[FolderPatch], list[str]]:
    """Plan all folders; a copy of other code of the same name is left alone, with a line."""
    plans = [plan_patch(path) for path in found.folders]
    left = []
    for copy in found.copies:
        try:
            plans.append(plan_patch(copy))
        except CheckpointError as error:
            left.append(f"{copy} is left as it is: {error.what}")
    if not plans:
        raise CheckpointError("; ".join(left))
    return plans, left


def _told(plan: FolderPatch, *, named: bool) -> Iterator[str]:
    if named:
        yield f"{plan.folder}\n"
    yield plan.diff
    yield f"{plan}\n"


def _about_transformers() -> str:
    """Return the sentence about versions of transformers, with the one of this environment."""
    runs = "This code runs with transformers 4.42 to 4.48"
    try:
        installed = version("transformers")
        numbers = tuple(int(part) for part in installed.split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return f"{runs}."
    if _FIRST <= numbers < _AFTER:
        return f"{runs}; {installed} is installed here."
    return f"{runs}, not with {installed}, which is installed here."


if __name__ == "__main__":
    sys.exit(main())
