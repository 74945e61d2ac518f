"""``--over``: one prompt over many pictures or values."""

from __future__ import annotations

import ast
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.displaypub import DisplayPublisher

from glm4v_magic.commands.ask import sampling_of, show_preview
from glm4v_magic.commands.context import Context
from glm4v_magic.display.batch import rows_bundle, rows_progress_bundle, rows_progress_line
from glm4v_magic.display.pace import Pace
from glm4v_magic.display.progress import line_bundle
from glm4v_magic.errors import Glm4vError, InputError, MapInterrupted, OptionError
from glm4v_magic.images import SourcedImage, parse_crop, resolve_images, to_images
from glm4v_magic.images.files import path_of
from glm4v_magic.images.words import is_lookup, looked_up
from glm4v_magic.rows import Items, are_pictures, files_of, is_dataframe, items_of, plan
from glm4v_magic.screen import Output, screen_for

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from glm4v_magic.batch import AnsweredRow, Progress

__all__ = ["named_items", "over"]

_TERMINAL_SECONDS = 2.0

_OF_ONE_ANSWER = {
    "chat": "--chat",
    "follow_up": "--continue",
    "format": "--format",
    "schema": "--schema",
}


def over(
    context: Context,
    arguments: Namespace,
    images: Sequence[str],
    prompt: str,
    names: Mapping[str, Any],
) -> Any:
    """Ask `prompt` about each item of ``--over``, show how far it is, and keep the rows.

    Args:
        context: shell and session.
        arguments: as `ANSWER_OPTIONS` declares them.
        images: the words that name pictures for every row.
        prompt: as it was written.
        names: the user's variables.

    Returns:
        See `Session.map`; ``None`` with ``--preview``.
    """
    _refuse_options_of_one_answer(arguments)
    items = named_items(arguments.over, names)
    with_pictures = bool(images) or are_pictures(prompt, items, raw=arguments.raw)
    for option in ("page", "crop"):
        if getattr(arguments, option) is not None and not with_pictures:
            raise OptionError(f"--{option} is about a picture, and the rows have none.")
    crop = None if arguments.crop is None else parse_crop(arguments.crop)
    limits, page = context.settings.limits, arguments.page

    def read(value: object, name: str) -> tuple[SourcedImage, ...]:
        return cut(to_images(value, name, limits=limits, page=page))

    def cut(found: tuple[SourcedImage, ...]) -> tuple[SourcedImage, ...]:
        return found if crop is None else tuple(crop.of(picture) for picture in found)

    pictures = cut(resolve_images(images, names, limits=limits, page=page))
    system = context.settings.system if arguments.system is None else arguments.system
    if arguments.preview:
        row = next(row for row in plan(prompt, items, names, raw=arguments.raw) if not row.error)
        own = read(row.item, row.name) if row.is_picture else ()
        draft = context.session.draft(row.prompt, list(pictures + own), system=system)
        show_preview(context, draft)
        return None
    screen = screen_for(context.shell, context.model, quiet=arguments.quiet)
    board = _board_for(context.shell, quiet=arguments.quiet)
    try:
        result = context.session.map(
            prompt,
            items,
            images=list(pictures),
            names=names,
            raw=arguments.raw,
            batch_size=arguments.batch_size,
            fresh=arguments.fresh,
            read=read,
            **sampling_of(context, arguments),
            system=system,
            model=context.settings.model,
            on_progress=screen.loading,
            on_start=screen.loaded,
            on_row=board.row,
        )
        context.keep(result, arguments.out)
        board.finish()
    except MapInterrupted as stopped:
        if board.progress is not None:
            _keep(context, stopped.result, arguments.out)
            board.finish()
        raise
    except Glm4vError as error:
        if board.progress is not None and board.progress.answered:
            answered = board.progress.answered
            few = "One row is" if answered == 1 else f"{answered:,} rows are"
            error.hint += f" {few} answered; run the cell again to go on."
        raise
    finally:
        screen.close()
        board.close()
    _refuse_if_all_failed(context, result, arguments.out, board.rows)
    return result


def _refuse_options_of_one_answer(arguments: Namespace) -> None:
    for name, option in _OF_ONE_ANSWER.items():
        if getattr(arguments, name):
            raise OptionError(
                f"{option} does not go with --over.",
                "Each row is a fresh question of its own, and its answer is plain text.",
            )


def _keep(context: Context, result: object, name: str | None) -> None:
    context.keep(result, name)
    # A cell that fails has no result, so IPython would not set _ and Out.
    context.shell.displayhook.update_user_ns(result)


def _refuse_if_all_failed(
    context: Context, result: object, name: str | None, rows: Sequence[AnsweredRow]
) -> None:
    """Let the cell fail, so that "Run All" stops; the rows with their errors are kept."""
    if all(row.error is not None for row in rows):
        _keep(context, result, name)
        few = "The only row" if len(rows) == 1 else f"Each of the {len(rows)} rows"
        raise InputError(f"{few} failed; the first: {rows[0].error}")


def named_items(word: str, names: Mapping[str, Any]) -> Items:
    """Return what a word stands for: a variable, a folder, an expression, a pattern.

    ``df.image`` and ``df["image"]`` are the column of a DataFrame whose other columns the prompt
    can use.

    Raises:
        InputError: if it stands for no items.
    """
    if word in names:
        return items_of(names[word], word)
    if not path_of(word, Path.cwd()).exists() and is_lookup(word, names):
        return _column(word, names) or items_of(looked_up(word, names), word)
    return files_of(word)


def _column(word: str, names: Mapping[str, Any]) -> Items | None:
    """Return the items of `word` if it is a column of a DataFrame, or wants to be one."""
    tree = ast.parse(word, mode="eval").body
    if not isinstance(tree, ast.Attribute | ast.Subscript):
        return None
    frame: Any = looked_up(ast.unparse(tree.value), names)
    if not is_dataframe(frame):
        return None
    if isinstance(tree, ast.Attribute):
        column: object = tree.attr
        if column not in frame and hasattr(frame, tree.attr):  # df.index
            return None
    else:
        column = looked_up(ast.unparse(tree.slice), names)
        if not isinstance(column, str | int):  # df[df.n > 3]
            return None
    return items_of(frame, word, column=column)


def _board_for(shell: InteractiveShell, *, quiet: bool) -> Board:
    if quiet:
        return Board()
    # As in `screen_for`: only IPython's own publisher cannot replace an output.
    return TerminalBoard() if type(shell.display_pub) is DisplayPublisher else NotebookBoard()


class Board:
    """Where a run shows how far it is; this one shows nothing."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    @property
    def rows(self) -> list[AnsweredRow]:
        """Rows that are answered or have failed, in their order."""
        done = () if self.progress is None else self.progress.rows
        return [row for _, row in sorted({row.index: row for row in done}.items())]

    def row(self, progress: Progress) -> None:
        """One more row is done."""
        self.progress = progress

    def finish(self) -> None:
        """The run has ended, or was stopped: show the table."""

    def close(self) -> None:
        """The call is over, well or not: leave nothing half drawn."""


class NotebookBoard(Board):
    """One output: the bar, which becomes the table."""

    def __init__(self) -> None:
        super().__init__()
        self._output = Output()
        self._pace = Pace()
        self._open = False

    def row(self, progress: Progress) -> None:
        """Move the bar."""
        super().row(progress)
        if self._pace.due():
            self._open = True
            self._output.show(rows_progress_bundle(progress))

    def finish(self) -> None:
        """Replace the bar by the table."""
        if self.progress is not None:
            self._open = False
            self._output.show(rows_bundle(self.rows, self.progress.total))

    def close(self) -> None:
        """Replace a bar that never became full."""
        if self._open and self.progress is not None:
            line = rows_progress_line(self.progress)
            self._output.show(line_bundle(f"{line}, not finished."))


class TerminalBoard(Board):
    """A line now and then, and the table at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace(_TERMINAL_SECONDS)

    def row(self, progress: Progress) -> None:
        """Print how far it is."""
        super().row(progress)
        if self._pace.due():
            _say(rows_progress_line(progress))

    def finish(self) -> None:
        """Print the table."""
        if self.progress is not None:
            _say(rows_bundle(self.rows, self.progress.total)["text/plain"])


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  what a terminal is for
