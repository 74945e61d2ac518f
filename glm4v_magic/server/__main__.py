"""``python -m glm4v_magic.server``: imports the command, which takes a while, and runs it."""

from __future__ import annotations

import sys

from glm4v_magic.imports import import_whole

__all__ = ["main"]


def main() -> int:
    """Run the command; return the exit status. An interrupt stops the imports, too."""
    try:
        import_whole("glm4v_magic.server.command")
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr, flush=True)  # noqa: T201  what a command is for
        return 0
    from glm4v_magic.server import command

    return command.main()


if __name__ == "__main__":
    sys.exit(main())
