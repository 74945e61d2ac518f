"""Conversations: ``%glm4v history``, ``chats``, ``retry``, ``continue``, and their files."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any

from glm4v_magic.core.conversation import Answer, Conversation
from glm4v_magic.core.errors import OptionError, did_you_mean
from glm4v_magic.core.wording import brief
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import takes
from glm4v_magic.notebook.commands.ask import carry_out
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.commands.look import open_comparison, open_look
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.render.answers.chat import chat_name, chats_bundle, history_bundle
from glm4v_magic.notebook.render.progress import line_bundle

__all__ = ["chats", "continue_", "export", "history", "import_", "inspect", "reset", "retry"]


@takes("glm4v retry", *ARGUMENTS["retry"])
def retry(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> Answer:
    """Ask the latest question again; the new answer takes the place of the old one.

    Options of the first time are not remembered. Interrupting leaves the old answer in the chat::

        %glm4v retry --temperature 0.8 --seed 3
        better = %glm4v retry cats --max-tokens 1000
    """
    call = partial(context.session.stream_retry, arguments.chat)
    return carry_out(context, arguments, names, call)


@takes("glm4v continue", *ARGUMENTS["continue"])
def continue_(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> Answer:
    """Carry on an answer that was interrupted, or cut off at the token limit.

    The whole answer is shown and kept, in the form that was asked for; its usage is that of the new
    part. To ask the next question instead, give its cell the option --continue::

        %glm4v continue
        %glm4v continue --max-tokens 2000
    """
    session = context.session
    name = session.current_chat if arguments.chat is None else arguments.chat
    begun = session.chats.get(name, Conversation()).partial
    call = partial(session.stream_carry_on, arguments.chat)
    return carry_out(context, arguments, names, call, begun.form if begun else {})


@takes("glm4v history", *ARGUMENTS["history"])
def history(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show all questions and answers of a chat.

    Images are named with their sizes::

        %glm4v history
        %glm4v history cats
    """
    show(history_bundle(context.session.conversation(arguments.chat)))


@takes("glm4v inspect", *ARGUMENTS["inspect"])
def inspect(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show why the latest answer of a chat was given, by running the model on it once more.

    Choose a word, and the image shows the parts that it depends on: found by covering them, by
    attention, or by gradients; a table shows what each layer of the model would have said. With
    --against, two answers stand side by side with what differs. The model must still be loaded, and
    in this process; answer.inspect() has more in Python::

        %glm4v inspect
        %glm4v inspect cats
        %glm4v inspect cats --against dogs
    """
    chats = [arguments.chat, *([] if arguments.against is None else [arguments.against])]
    look, *others = map(context.session.inspect, chats)
    # Rows of a map and columns of a comparison are in no chat: this may be of an earlier cell.
    questions = dict.fromkeys(context.session.conversation(each).question for each in chats)
    show(line_bundle(f"Asked was {' and '.join(map(brief, questions))}."))
    if others:
        open_comparison(context, look.against(*others))
    else:
        open_look(context, look)


@takes("glm4v chats", *ARGUMENTS["chats"])
def chats(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """List the chats. An arrow marks that of the latest answer, with which --continue goes on."""
    found = context.session.chats
    if found:
        show(chats_bundle(list(found.items()), context.session.current_chat))
    else:
        show(line_bundle("There is no chat yet: a cell with --chat NAME begins one."))


@takes("glm4v reset", *ARGUMENTS["reset"])
def reset(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Forget a chat.

    Answers in variables stay. A chat that is not there is not an error, so that this
    may stand at the top of a notebook::

        %glm4v reset
        %glm4v reset cats
        %glm4v reset --all
    """
    known = [name for name in context.session.chats if name]
    if arguments.all and arguments.chat is not None:
        raise OptionError("%glm4v reset takes a NAME or --all, not both.")
    gone = context.session.reset(arguments.chat, everything=arguments.all)
    if gone:
        show(line_bundle(f"Forgotten: {', '.join(map(chat_name, gone))}."))
    elif arguments.chat:
        hint = did_you_mean(arguments.chat, known)
        if arguments.chat.lower() == "all":
            hint = "To forget all of them: %glm4v reset --all."
        show(line_bundle(f"There was no chat {chat_name(arguments.chat)}. {hint}".rstrip()))
    else:
        show(line_bundle("There was nothing to forget."))


@takes("glm4v export", *ARGUMENTS["export"])
def export(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Write a chat to a file, replacing one that is there.

    JSON holds everything and can be imported; Markdown is for people::

        %glm4v export chat.json
        %glm4v export cats cats.md
    """
    file = context.session.export_chat(arguments.file, arguments.chat)
    name = context.session.current_chat if arguments.chat is None else arguments.chat
    show(line_bundle(f"{chat_name(name)} is in {file}."))


@takes("glm4v import", *ARGUMENTS["import"])
def import_(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Read a chat that %glm4v export wrote as JSON.

    It becomes the one with which --continue goes on::

        %glm4v import cats.json
        %glm4v import chat.json dogs
    """
    limits = context.settings.limits
    name = context.session.import_chat(arguments.file, arguments.chat, limits=limits)
    show(line_bundle(f"{chat_name(name)} is there; --continue goes on with it."))
