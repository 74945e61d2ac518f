"""What each command takes, so that it can be completed before the commands are imported.

`commands` carry out what is parsed with this.
"""

from __future__ import annotations

from collections.abc import Mapping

from IPython.core.magic_arguments import ArgDecorator, argument

from glm4v_magic.checkpoints.names import PUBLISHED
from glm4v_magic.core.model import DEMOS
from glm4v_magic.notebook.command_line import AGAIN_OPTIONS, ANSWER_OPTIONS, DEBUG, from_table

__all__ = ["ARGUMENTS"]

_WORDS = argument("words", nargs="*", metavar="IMAGE", help="Images, then the question in quotes.")

_CHAT = argument(
    "chat", nargs="?", metavar="NAME", help="A chat; that of the latest answer unless given."
)

_MODEL = argument(
    "model", nargs="?", help=f"Folder, repository, {', '.join((*DEMOS, *PUBLISHED))}."
)

ARGUMENTS: Mapping[str, tuple[ArgDecorator, ...]] = {
    "ask": (_WORDS, *ANSWER_OPTIONS),
    "preview": (_WORDS, *ANSWER_OPTIONS),
    "continue": (_CHAT, *AGAIN_OPTIONS),
    "retry": (_CHAT, *AGAIN_OPTIONS),
    "chats": (DEBUG,),
    "history": (_CHAT, DEBUG),
    "inspect": (_CHAT, *from_table("inspect"), DEBUG),
    "reset": (_CHAT, *from_table("reset"), DEBUG),
    "export": (
        _CHAT,
        argument("file", metavar="FILE", help="Ends in .json, with all images, or in .md."),
        DEBUG,
    ),
    "import": (
        argument("file", metavar="FILE", help="JSON that %%glm4v export wrote."),
        argument(
            "chat", nargs="?", metavar="NAME", help="What to call it; its own name unless given."
        ),
        DEBUG,
    ),
    "plan": (
        _MODEL,
        *from_table("plan"),
        DEBUG,
    ),
    "devices": (_MODEL, *from_table("devices"), DEBUG),
    "memory": (DEBUG,),
    "check": (
        _MODEL,
        *from_table(
            "check",
            device_map={
                "default": "plan",
                "help": "Device map or plan (JSON), auto for transformers' own, one device such "
                "as 0, or plan (the default).",
            },
        ),
        DEBUG,
    ),
    "load": (
        argument(
            "model",
            nargs="?",
            help=f"Folder, id on the hub, {', '.join(DEMOS)}, or a server's address.",
        ),
        *from_table("load"),
        DEBUG,
    ),
    "serve": (
        argument("model", nargs="?", help=f"Folder, id on the hub, {', '.join(DEMOS)}."),
        *from_table("serve"),
        DEBUG,
    ),
    "unload": (DEBUG,),
    "status": (DEBUG,),
    "doctor": (
        argument("model", nargs="?", help="Name or folder to judge for; GLM-4V-9B unless given."),
        *from_table("doctor"),
        DEBUG,
    ),
    "config": (
        argument("name", nargs="?", metavar="NAME", help="One setting; all of them unless given."),
        DEBUG,
    ),
    "patch": (
        argument(
            "folder",
            metavar="FOLDER",
            help="Of GLM-4V-9B, CogVLM2 or CogAgent, or the id of a download.",
        ),
        *from_table("patch"),
        DEBUG,
    ),
    "help": (argument("command", nargs="?", help="One of the commands."), DEBUG),
}
"""Command -> its words and options, in the order of the help."""
