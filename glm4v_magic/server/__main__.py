"""``python -m glm4v_magic.server``: imports the command, which takes a while, and runs it."""

from __future__ import annotations

import sys

from glm4v_magic.imports import import_whole

__all__ = ["main"]

_OF_THE_EXTRA = ("prometheus_client", "starlette", "uvicorn")
_MISSING = (
    "Serving needs the package {}, which is not installed. "
    "Install it with: pip install 'glm4v_magic[server]'"
)


def main() -> int:
    """Run the command; return the exit status.

    An interrupt stops the imports, too. Without the packages of the extra ``server`` it says so.
    """
    try:
        import_whole("glm4v_magic.server.command")
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr, flush=True)  # noqa: T201  what a command is for
        return 0
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _OF_THE_EXTRA:
            raise
        print(_MISSING.format(package), file=sys.stderr, flush=True)  # noqa: T201  likewise
        return 1
    from glm4v_magic.server import command

    return command.main()


if __name__ == "__main__":
    sys.exit(main())
