"""Serve a model to other programs: ``python -m glm4v_magic.server MODEL``.

A small server that speaks OpenAI's protocol (``/v1/models``, ``/v1/chat/completions``, streamed or
not), so that a notebook on a laptop can ask the machine with the GPUs::

    python -m glm4v_magic.server ~/models/glm-4v-9b --gpus 2x24GiB

    glm4v_magic.load("http://127.0.0.1:8000/v1")

It answers many requests together: each enters the running batch when it comes, and leaves it when
its client does. Ctrl-C stops it between two tokens. It listens on this computer
only unless told otherwise, and fetches nothing: images come as ``data:`` URIs. If GLM4V_API_KEY is
set, it answers only clients that send this key. For hundreds of users, vLLM and SGLang are the
right choice.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from glm4v_magic.core.errors import EngineError, Glm4vError, OptionError
from glm4v_magic.core.model import DEMOS
from glm4v_magic.core.options import Serving, of_command, of_group
from glm4v_magic.core.server_address import API_KEY, is_loopback, refuse_address
from glm4v_magic.core.typed_options import argument_of, flags_of, typed
from glm4v_magic.outside import expanded, is_folder
from glm4v_magic.server.listening import Server
from glm4v_magic.server.next_steps import in_http
from glm4v_magic.session.session import load

__all__ = ["main", "parser"]

_OF_THE_LOAD = [each for each in of_command("serve") if "load" in each.who.python]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        prog="python -m glm4v_magic.server",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "model", metavar="MODEL", help=f"folder, id on the hub, or {' or '.join(DEMOS)}"
    )
    for option in of_command("serve"):
        made.add_argument(*flags_of(option), **argument_of(option))
    return made


def main(words: list[str] | None = None) -> int:
    """Serve as the command line says; return the exit status.

    Args:
        words: arguments, without the program's name; those of the process by default.
    """
    made = parser()
    try:
        arguments = made.parse_args(words)
    except OptionError as error:
        made.error(in_http(error))
    name = expanded(arguments.model)
    try:
        refuse_address(arguments.model)
        host, port, parallel = _own(arguments)
        with Server(host, port) as server:
            if not (is_loopback(host) or os.environ.get(API_KEY)):
                _say(f"Whoever reaches this port may ask; set {API_KEY} to a key to prevent that.")
            session = load(arguments.model, **typed(arguments, _OF_THE_LOAD))
            served = name.name if is_folder(name) else arguments.model
            server.open(session, served, parallel)
            server.serve()
            if server.is_lost:
                raise EngineError(f"All replicas of {served} were lost.", "Start the server again.")
    except Glm4vError as error:
        _say(in_http(error))
        return 1
    except KeyboardInterrupt:
        _say("Stopped.")
    return 0


def _own(arguments: argparse.Namespace) -> list[Any]:
    """Return host, port and number of requests at once, checked."""
    own = of_group(Serving)
    given = typed(arguments, own)
    values = [given.get(each.name, each.default) for each in own]
    for each, value in zip(own, values, strict=True):
        each.check(value)
    return values


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  what a command is for
