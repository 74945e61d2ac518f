"""`python -m glm4v_magic.remote_code.patch FOLDER`: make GLM-4V-9B's own code consistent.

Exit status: 0 if every place is consistent now (or would be, with `--dry-run`), 1 if the folder
cannot be patched and nothing was changed, 2 if the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.remote_code.source_patch import plan_patch, write_patch

__all__ = ["main", "patched"]

_DESCRIPTION = """\
Edit visual.py and modeling_chatglm.py in a GLM-4V-9B checkpoint folder so that no split of the
model over GPUs ends in "Expected all tensors to be on the same device". The diff is shown, the
originals are kept as *.orig, and running it again changes nothing."""

_EPILOG = """\
exit status: 0 done, or nothing to do; 1 the folder cannot be patched, nothing was changed;
2 wrong command line"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m glm4v_magic.remote_code.patch",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", help="the checkpoint folder")
    parser.add_argument("--dry-run", action="store_true", help="show the diff, write nothing")
    options = parser.parse_args(arguments)
    try:
        told = patched(options.folder, dry_run=options.dry_run)
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(told)
    return 0


def patched(folder: str | Path, *, dry_run: bool) -> str:
    """Patch a checkpoint folder; returns the diff and one line for each place.

    Args:
        folder: the checkpoint folder.
        dry_run: write nothing.

    Raises:
        CheckpointError: if the folder cannot be patched; nothing is changed then.
    """
    patch = plan_patch(folder)
    if not dry_run:
        patch = write_patch(patch)
    parts = [patch.diff] if patch.changed else []
    parts.append(f"{patch}\n")
    if not patch.changed:
        parts.append("Nothing to do: every place is consistent already.\n")
    elif dry_run:
        parts.append("Dry run: nothing was written.\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(main())
