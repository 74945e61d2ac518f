"""``--over``: one prompt over many images or values."""

from __future__ import annotations

import ast
import re
import warnings
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm4v_magic.calls.tasks import asked
from glm4v_magic.core.errors import Glm4vError, InputError, MapInterrupted, OptionError, SaveError
from glm4v_magic.core.events import Loading, Started, Starting, Waiting
from glm4v_magic.core.option_values import python_literal
from glm4v_magic.core.options import check
from glm4v_magic.core.remarks import worded
from glm4v_magic.core.typed_options import as_typed
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.images import (
    Crop,
    Limits,
    SourcedImage,
    count_images,
    resolve_images,
    to_images,
)
from glm4v_magic.images.files import current_folder, path_of
from glm4v_magic.images.video import has_video, is_video, to_video
from glm4v_magic.images.words import is_lookup, looked_up
from glm4v_magic.mapping.items import (
    Items,
    are_images,
    files_of,
    is_dataframe,
    is_table,
    items_of,
    plan,
)
from glm4v_magic.mapping.results import new_names
from glm4v_magic.mapping.row_media import media_of
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.commands.question import (
    clips_of,
    crop_of,
    form_asked,
    sampling_of,
    show_preview,
    video_of,
    video_parts,
)
from glm4v_magic.notebook.live.board import Board, board_for
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.live.screen import screen_for
from glm4v_magic.notebook.live.stop_button import heard_first
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.notebook.render.progress import line_bundle
from glm4v_magic.notebook.render.rows import go_on
from glm4v_magic.outside import is_there
from glm4v_magic.session.stream import Stream

__all__ = ["named_items", "over"]

_OF_A_CHAT = {"chat": "--chat", "follow_up": "--continue"}


def over(
    context: Context,
    arguments: Namespace,
    images: Sequence[str],
    prompt: str,
    names: Mapping[str, Any],
) -> Any:
    """Ask `prompt` about each item of ``--over``, show the progress, and keep the rows.

    Args:
        context: shell and session.
        arguments: as `ANSWER_OPTIONS` declares them.
        images: the words that name images for every row.
        prompt: as it was written.
        names: the user's variables.

    Returns:
        See `Session.map`; ``None`` with ``--preview``.
    """
    _refuse_options_of_a_chat(arguments)
    _refuse_without_evaluate(arguments)
    form = form_asked(arguments, names)
    found = _found(context, arguments, images, prompt, names)
    if arguments.preview:
        _preview(context, arguments, found, asked(prompt, arguments.task, form.schema), names)
        return None
    shared: dict[str, Any] = {
        "video": found.video,
        "before_video": found.before_video,
        "names": names,
        "raw": arguments.raw,
        "batch_size": arguments.batch_size,
        "fresh": arguments.fresh,
        "save": arguments.save,
        "read": found.reader.images,
        "read_video": found.reader.video,
        "words": CELL,
        **sampling_of(context, arguments),
        **form.options,
        "system": _system(context, arguments),
        "task": arguments.task,
        "model": context.settings.model,
    }
    session, images_of_all = context.session, list(found.images)
    if arguments.evaluate is None:
        stream = session.stream_map(prompt, found.items, images=images_of_all, **shared)
    else:
        scoring = {"answer": arguments.evaluate, "by": arguments.by, "bins": arguments.bins}
        stream = session.stream_evaluate(
            found.items, prompt, shared=images_of_all, **scoring, **shared
        )
    return _ask(context, arguments, stream, len(found.items.values))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads what rows and words name, as the cell's options say.

    Attributes:
        limits: limits on images.
        page: page of documents; ``None`` for all.
        crop: part of each image; ``None`` for the whole.
        parts: ``--fps``, ``--from`` and ``--to`` of videos.
    """

    limits: Limits
    page: int | None
    crop: Crop | None
    parts: Mapping[str, Any]

    def images(self, value: object, name: str) -> tuple[SourcedImage, ...]:
        """Return the images of a row."""
        return self.cut(to_images(value, name, limits=self.limits, page=self.page))

    def video(self, value: object, name: str) -> SourcedVideo:
        """Return the video of a row."""
        return to_video(value, name, limits=self.limits, **self.parts)

    def named(self, words: Sequence[str], names: Mapping[str, Any]) -> tuple[SourcedImage, ...]:
        """Return the images that words name."""
        return self.cut(resolve_images(words, names, limits=self.limits, page=self.page))

    def cut(self, found: tuple[SourcedImage, ...]) -> tuple[SourcedImage, ...]:
        """Return the part of each image that is asked about."""
        return found if self.crop is None else tuple(self.crop.of(image) for image in found)


@dataclass(frozen=True, slots=True)
class _Found:
    """What the words of a cell with ``--over`` name.

    Attributes:
        items: what is asked about, a row each.
        images: images of every row.
        video: video of every row.
        before_video: number of images before it.
        reader: reads the items.
    """

    items: Items
    images: tuple[SourcedImage, ...]
    video: SourcedVideo | None
    before_video: int | None
    reader: _Reader


def _found(
    context: Context,
    arguments: Namespace,
    images: Sequence[str],
    prompt: str,
    names: Mapping[str, Any],
) -> _Found:
    """Find what is asked about; refuses options that do not apply to any of it."""
    items = named_items(arguments.over, names, arguments.page)
    as_images = are_images(prompt, items, raw=arguments.raw)
    clips = [as_images and has_video(each) for each in items.values]
    shared_clips = clips_of(images, names)
    with_images = len(images) > len(shared_clips) or (
        as_images and not all(map(is_video, items.values))
    )
    is_there_video = bool(shared_clips) or any(clips)
    parts = video_parts(arguments, None if is_there_video else "and the rows have none")
    _refuse_two_videos(shared_clips, any(clips))
    video, before, after = video_of(context, arguments, images, names)
    _refuse_parts_of_no_image(arguments, with_images)
    crop = crop_of(arguments.crop, names)
    reader = _Reader(context.settings.limits, arguments.page, crop, parts)
    shared = reader.named([*before, *after], names)
    before_video = None if video is None else count_images(before, names)
    return _Found(items, shared, video, before_video, reader)


def _system(context: Context, arguments: Namespace) -> str | None:
    return context.settings.system if arguments.system is None else arguments.system


def _preview(
    context: Context,
    arguments: Namespace,
    found: _Found,
    prompt: str,
    names: Mapping[str, Any],
) -> None:
    """Show the first row that can be asked; nothing is asked."""
    rows = plan(prompt, found.items, names, raw=arguments.raw)
    row = next(row for row in rows if row.failure is None)
    reader, video, before_video = found.reader, found.video, found.before_video
    own: tuple[SourcedImage, ...] = ()
    if row.has_video:
        own, video, before = media_of(row.item, row.name, reader.images, reader.video)
        before_video = len(found.images) + before
    elif row.is_image:
        own = reader.images(row.item, row.name)
    draft = context.session.draft(
        row.prompt,
        list(found.images + own),
        video,
        system=_system(context, arguments),
        before_video=before_video,
    )
    show_preview(context, draft, arguments.task)


def _ask(context: Context, arguments: Namespace, stream: Stream, rows: int) -> Any:
    """Ask, show the rows as they are answered, and keep what is done, whatever happens."""
    screen = screen_for(context.shell, context.model, quiet=arguments.quiet)
    board = board_for(
        context.shell,
        rows,
        quiet=arguments.quiet,
        button=context.settings.stop_button,
        told=context.told,
    )
    try:
        with stream, heard_first(screen, board):
            for event in stream:
                if isinstance(event, (Starting, Loading, Waiting)):
                    screen.show(event)
                elif isinstance(event, Started):
                    screen.loaded(event.info)
                    screen.stop_if_pressed()
                board.show(event)
        result = stream.result
        context.keep(result, arguments.out)
        board.finish()
        _show_scores(result, arguments)
        _tell_new_names(context, arguments, result)
    except BaseException as error:
        _keep_what_is_done(context, board, arguments, error)
        raise
    finally:
        screen.close()
        board.close()
    _refuse_if_all_failed(context, result, arguments.out, board)
    return result


def _refuse_two_videos(shared: Sequence[str], is_row: bool) -> None:
    if shared and is_row:
        raise OptionError(
            f"{shared[0]} is a video, and so are rows of --over; a question has one.",
            "Leave it out, or ask about values of which none is a video.",
        )


def _refuse_parts_of_no_image(arguments: Namespace, with_images: bool) -> None:
    for option in ("page", "crop"):
        if getattr(arguments, option) is not None and not with_images:
            raise OptionError(f"--{option} is about an image, and the rows have none.")


def _refuse_without_evaluate(arguments: Namespace) -> None:
    for name in ("by", "bins"):
        value = getattr(arguments, name)
        if value is not None and arguments.evaluate is None:
            raise OptionError(f"--{name} is about --evaluate, and there is no --evaluate.")
        check(name, value, as_typed(name))
    check("evaluate", arguments.evaluate, as_typed("evaluate"))


def _refuse_options_of_a_chat(arguments: Namespace) -> None:
    for name, option in _OF_A_CHAT.items():
        if getattr(arguments, name):
            raise OptionError(
                f"{option} does not go with --over. Each row is a fresh question of its own."
            )


def _show_scores(result: object, arguments: Namespace) -> None:
    """Show the evaluation below its rows, if it is one."""
    if arguments.evaluate is not None and not arguments.quiet:
        from glm4v_magic.mapping.evaluation import Evaluation
        from glm4v_magic.notebook.render.evaluation import evaluation_bundle

        assert isinstance(result, Evaluation)
        show(evaluation_bundle(result))


def _tell_new_names(context: Context, arguments: Namespace, result: object) -> None:
    """Say how the new columns are called where the table had some of their names; once."""
    names = new_names(result)
    line = f"The table has columns of their names already, so the new ones are {', '.join(names)}."
    if names and not arguments.quiet and line not in context.told:
        context.told.add(line)
        show(line_bundle(line))


def _keep_what_is_done(
    context: Context, board: Board, arguments: Namespace, error: BaseException
) -> None:
    """Keep and show the rows of a run that was interrupted or failed; let `error` say so."""
    if isinstance(error, MapInterrupted) and error.progress.done:
        board.row(error.progress)
    if board.progress is None:
        return
    result = board.progress.result()
    _keep(context, result, arguments.out)
    board.finish()
    _show_scores(result, arguments)
    _tell_new_names(context, arguments, result)
    answered = board.progress.answered
    if type(error) is KeyboardInterrupt:  # on the way out of the session
        raise MapInterrupted(board.progress) from None
    if isinstance(error, SaveError):
        return  # it says itself where the rows are
    few = "One row is" if answered == 1 else f"{answered:,} rows are"
    on = f"{few} answered and in _; {go_on(board.progress.fresh)}."
    if isinstance(error, Glm4vError) and answered:
        error.hint = f"{error.hint} {on}".lstrip()
    elif isinstance(error, Exception) and answered:
        error.add_note(on)


def _keep(context: Context, result: object, name: str | None) -> None:
    context.keep(result, name)
    # A cell that fails has no result, so IPython would not set _ and Out.
    context.shell.displayhook.update_user_ns(result)


def _refuse_if_all_failed(context: Context, result: object, name: str | None, board: Board) -> None:
    """Fail the cell if all rows failed, so that "Run All" stops; the rows are kept."""
    rows = board.rows
    if all(row.failure is not None for row in rows):
        _keep(context, result, name)
        few = (
            "The only row failed"
            if len(rows) == 1
            else f"Each of the {len(rows)} rows failed; the first"
        )
        raise InputError(f"{few}: {worded(rows[0].failure or '', CELL)}")


def named_items(word: str, names: Mapping[str, Any], page: int | None = None) -> Items:
    """Return the items that a word names: a variable, folder, expression, list or pattern.

    ``df.image`` and ``df["image"]`` are the column of a DataFrame whose other columns the prompt
    can use. Documents among the files stand for all their pages, or only for `page`.

    Raises:
        InputError: if it names no items.
    """
    if word in names:
        return items_of(names[word], word)
    is_path = is_there(path_of(word, current_folder()))
    if not is_path and is_lookup(word, names):
        return _column(word, names) or items_of(looked_up(word, names), word)
    written = None if is_path else _literal(word)
    if written is not None:
        return items_of(written, word)
    try:
        return files_of(word, page=page, names=names)
    except OptionError as error:
        error.hint = _begun(word, names) or error.hint
        raise


def _literal(word: str) -> Collection[object] | None:
    """Return the list, tuple, set or dictionary that `word` is a literal of, if any."""
    value = python_literal(word)
    return value if isinstance(value, list | tuple | set | dict) else None


def _begun(word: str, names: Mapping[str, Any]) -> str:
    """Return a hint if `word` looks like other Python, or like the beginning of some."""
    used = _names_in(word)
    if word.startswith(("[", "(", "{")) and used is None:
        return "A list with spaces goes in quotes, or into a variable."
    if re.match(r"[\[({]|[\w.]+\(.*\)$", word) or (used and used & {*names}):
        return "Put it into a variable, and give its name."
    return ""


def _names_in(word: str) -> set[str] | None:
    """Return the names in a word that is an expression of Python; ``None`` if it is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(word, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}


def _column(word: str, names: Mapping[str, Any]) -> Items | None:
    """Return the items of `word` if it is, or looks like, a column of a table."""
    tree = ast.parse(word, mode="eval").body
    if not isinstance(tree, ast.Attribute | ast.Subscript):
        return None
    frame: Any = looked_up(ast.unparse(tree.value), names)
    if not is_dataframe(frame):
        key = tree.slice if isinstance(tree, ast.Subscript) else None
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and is_table(frame):
            return items_of(frame, word, column=key.value)
        return None
    if isinstance(tree, ast.Attribute):
        column: object = tree.attr
        if column not in frame and hasattr(frame, tree.attr):  # df.index
            return None
    else:
        if any(isinstance(each, ast.Slice) for each in _parts(tree.slice)):  # df[:10]
            return None
        column = looked_up(ast.unparse(tree.slice), names)
        if not isinstance(column, str | int):  # df[df.n > 3]
            return None
    return items_of(frame, word, column=column)


def _parts(index: ast.expr) -> Sequence[ast.expr]:
    """Return what stands between the brackets, apart if there are commas."""
    return index.elts if isinstance(index, ast.Tuple) else (index,)
