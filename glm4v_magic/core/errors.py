"""Everything that can go wrong, as one tree.

    Glm4vError                      the base: what happened, what to do next
    ├── InputError                  something the user typed or passed
    │   ├── OptionError             an unknown or malformed option, command or setting
    │   ├── PromptError             an empty prompt, a {{expression}} that fails
    │   ├── ImageError              an image that is missing, unreadable, unreachable or too large
    │   └── ConversationError       messages a checkpoint cannot take (two images, wrong roles)
    ├── CheckpointError             a folder, config, tokenizer or weight file that is not usable
    ├── PlacementError              GPUs, device maps and plans
    │   ├── GPUDescriptionError     "4x", "0x16", "3x-1GiB"
    │   ├── DeviceMapError          a map that misses, repeats or invents a module or a GPU
    │   └── DoesNotFitError         no split fits; carries what is short by how much
    ├── OutOfMemoryError            a GPU or the host ran out while loading or answering
    ├── EngineError                 the engine or its server failed
    ├── FormatError                 an answer that is not in the form asked for; it is kept
    ├── SaveError                   rows that cannot be written to their file; they are kept
    └── BusyError                   another call is running

    GenerationInterrupted           a KeyboardInterrupt that carries the partial answer
    MapInterrupted                  a KeyboardInterrupt that carries the rows that are done
    LoadInterrupted                 a KeyboardInterrupt after the previous model was released
    ComparisonInterrupted           a KeyboardInterrupt that carries the columns that are done

These four derive from `KeyboardInterrupt`, not from `Glm4vError`: an interrupt
must pass every ``except Exception`` on its way up, so that "Run All" stops. They carry a code
and values like the errors.

An error knows no user interface. Where what to do next depends on one, it carries a code and
values, and the front end words them; see `remarks`. What an error carries for its handlers (a
plan, an answer) is declared as ``Any`` and named in its docstring: the modules of that data raise
errors, so this one knows none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from glm4v_magic.core.remarks import PYTHON, Remark, remark, worded

__all__ = [
    "BusyError",
    "CheckpointError",
    "ComparisonInterrupted",
    "ConversationError",
    "DeviceMapError",
    "DoesNotFitError",
    "EngineError",
    "FormatError",
    "GPUDescriptionError",
    "GenerationInterrupted",
    "Glm4vError",
    "ImageError",
    "InputError",
    "LoadInterrupted",
    "MapInterrupted",
    "OptionError",
    "OutOfMemoryError",
    "PlacementError",
    "PromptError",
    "SaveError",
    "did_you_mean",
    "reason",
]


class Glm4vError(Exception):
    """Base of all errors of this package.

    Args:
        what: what happened, and where: one sentence that names the file, option or module.
        hint: what to do next, where that is the same in every front end; may be empty.
        code: name of the situation, where the next step depends on the front end; by default the
            code of the class, for which no front end has words.
        values: values for the fields in the front end's words for that code; see `remarks`.
    """

    code = "error"
    """Short, stable name of the situation; that of the class where the case has none of its own."""

    def __init__(self, what: str, hint: str = "", *, code: str = "", **values: object) -> None:
        super().__init__(what, hint)
        self.what = what
        self.advise(hint, code=code, **values)

    def advise(self, hint: str = "", *, code: str = "", **values: object) -> None:
        """Replace the advice on what to do next; arguments as those of the class."""
        self.hint = hint
        self.code = code or type(self).code
        self.values: dict[str, object] = values

    def advise_like(self, other: Glm4vError | Remark) -> None:
        """Take over the advice of a remark or another error."""
        self.advise()
        if isinstance(other, Glm4vError):
            self.hint = other.hint
            if other.code == type(other).code:
                return
        self.code, self.values = other.code, dict(other.values)

    def __str__(self) -> str:
        return worded(self.text, PYTHON)

    @property
    def text(self) -> tuple[str | Remark, ...]:
        """Whole message as data; a front end words it with `remarks.worded`."""
        what, hint = _shortened(self.what, self.hint)
        values = {
            name: _LONG_WORD.sub(_ends, value) if isinstance(value, str) else value
            for name, value in self.values.items()
        }
        return (what, Remark(self.code, values), hint)


class InputError(Glm4vError):
    """Something the user typed or passed cannot be used."""

    code = "input"


class OptionError(InputError):
    """An unknown or malformed option, command or setting.

    Args:
        what: as in `Glm4vError`.
        hint: likewise.
        code: likewise.
        option: name of the option with which `what` begins, for a front end to spell as it is given
            there; empty if `what` begins in another way.
        values: as in `Glm4vError`.
    """

    code = "option"

    def __init__(
        self, what: str, hint: str = "", *, code: str = "", option: str = "", **values: object
    ) -> None:
        super().__init__(what, hint, code=code, **values)
        self.option = option

    @property
    def text(self) -> tuple[str | Remark, ...]:
        """Whole message as data; a front end words it with `remarks.worded`."""
        what, *advice = super().text
        if self.option and isinstance(what, str) and what.startswith(self.option):
            what = remark("of_option", name=self.option, rest=what[len(self.option) :])
        return (what, *advice)


class PromptError(InputError):
    """An empty prompt, or a ``{{expression}}`` that cannot be evaluated."""

    code = "prompt"


class ImageError(InputError):
    """An image that is missing, unreadable, unreachable or too large."""

    code = "image"


class ConversationError(InputError):
    """Messages that the checkpoint in use cannot take."""

    code = "conversation"


class CheckpointError(Glm4vError):
    """A checkpoint folder, its configuration, tokenizer or weights cannot be used."""

    code = "checkpoint"


class PlacementError(Glm4vError):
    """A problem with GPUs, device maps or plans that has no class of its own."""

    code = "placement"


class GPUDescriptionError(PlacementError):
    """A description of GPUs such as ``4x16GiB`` that cannot be read."""

    code = "gpu_description"


class DeviceMapError(PlacementError):
    """A device map that misses, repeats or invents a module or a GPU."""

    code = "device_map"


class DoesNotFitError(PlacementError):
    """No split of the model fits on the given GPUs.

    Attributes:
        plan: the best split as a `Plan`, over-full; ``None`` if no GPU has any room.
    """

    code = "does_not_fit"
    plan: Any = None


class OutOfMemoryError(Glm4vError):
    """A GPU or the host ran out of memory. A model loaded before the call stays loaded.

    Attributes:
        rows: numbers of the requests that were being answered at once.
        generations: by row, the `Generation` of each that had begun to answer.
        answer: the `Answer`, which `Session.ask` adds and keeps: what was said until then. ``None``
            if nothing was.
    """

    code = "out_of_memory"
    rows: tuple[int, ...] = ()
    generations: Mapping[int, Any] = MappingProxyType({})
    answer: Any = None


class EngineError(Glm4vError):
    """The engine, or the server behind it, failed.

    Attributes:
        reach: ``"request"`` if others may be answered all the same, ``"all"`` if none will be, and
            ``"unknown"`` if the others have to be heard.
        generations: as in `OutOfMemoryError`.
        answer: likewise.
    """

    code = "engine"
    generations: Mapping[int, Any] = MappingProxyType({})
    answer: Any = None
    reach: Literal["request", "unknown", "all"] = "unknown"

    def of_request(self) -> EngineError:
        """Return this error as that of one request alone."""
        self.reach = "request"
        return self


class FormatError(Glm4vError):
    """The model's answer is not in the form that was asked for.

    Attributes:
        answer: the `Answer`, which `Session` adds.
    """

    code = "format"
    answer: Any = None


class SaveError(Glm4vError):
    """Rows of a map cannot be written to their file any more; those that are done are kept."""

    code = "save"


class BusyError(Glm4vError):
    """Another call is running."""

    code = "busy"


class _Interrupted(KeyboardInterrupt):
    """Base of the interrupts that carry a message.

    Attributes:
        text: what happened and what to do next, which a front end words.
    """

    def __init__(self, text: Remark) -> None:
        super().__init__()
        self.text = text

    @property
    def code(self) -> str:
        """Which situation it is; see `Glm4vError`."""
        return self.text.code

    @property
    def values(self) -> Mapping[str, object]:
        """Values for the fields in the words for that code."""
        return self.text.values

    def __str__(self) -> str:
        return worded(self.text, PYTHON)


class GenerationInterrupted(_Interrupted):
    """Answers were stopped by an interrupt.

    Attributes:
        generations: by row, the `Generation` of each that was still open: what was said until
            then. Its finish reason is ``interrupted``, unless the interrupt came with its last
            token. Never empty: if all had ended, it is the one that did so last.
        answer: the `Answer`, which `Session.ask` adds: the same text with its question, images
            and model.
    """

    def __init__(self, generations: Mapping[int, Any]) -> None:
        super().__init__(remark("answer_interrupted"))
        self.generations = dict(generations)
        self.answer: Any = None

    @property
    def generation(self) -> Any:
        """The generation of the first of these rows."""
        return self.generations[min(self.generations)]


class MapInterrupted(_Interrupted):
    """A prompt mapped over many rows was stopped; `result` holds what `Session.map` would return.

    Rows that were not asked have neither answer nor error. Asking the same again goes on where
    this stopped; where all rows were asked anew, without asking so.

    Args:
        progress: how far the map was (a `core.rows.Progress`), rows that were stopped included.
    """

    def __init__(self, progress: Any) -> None:
        super().__init__(_rows_interrupted(progress.answered, progress.total, progress.fresh))
        self.progress = progress
        self.result: object = progress.result()
        self.answered: int = progress.answered
        self.total: int = progress.total


def _rows_interrupted(answered: int, total: int, fresh: bool) -> Remark:
    if not answered:
        return remark("no_row_answered")
    if answered == total:
        return remark("all_rows_interrupted", total=total)
    if fresh:
        return remark("fresh_rows_interrupted", answered=answered, total=total)
    return remark("rows_interrupted", answered=answered, total=total)


class LoadInterrupted(_Interrupted):
    """A load was stopped after the previous model had been released to make room.

    The session loads that one again with its next question. Where there is room for both, the
    previous model stays loaded, and a plain `KeyboardInterrupt` is raised.

    Attributes:
        released: name of the previous model.
    """

    def __init__(self, released: str) -> None:
        super().__init__(remark("load_interrupted", released=released))
        self.released = released


class ComparisonInterrupted(_Interrupted):
    """A comparison was stopped, and no more models or settings were asked.

    Args:
        comparison: the `calls.compared.ComparedAnswers` so far, the half answer included.
        released: name of the model that was released to make room, and is not loaded again yet;
            ``""`` for none.

    Attributes:
        result: the comparison.
        released: as given.
    """

    def __init__(self, comparison: Any, released: str = "") -> None:
        columns = comparison.columns
        answered, total = sum(each.done for each in columns), len(columns)
        super().__init__(
            remark(
                "comparison_interrupted_without_room",
                answered=answered,
                total=total,
                released=released,
            )
            if released
            else remark("comparison_interrupted", answered=answered, total=total)
        )
        self.result: Any = comparison
        self.released = released


def did_you_mean(name: str, candidates: Iterable[str], limit: int = 3, cutoff: float = 0.6) -> str:
    """Return ``"Did you mean a.png or b.png?"`` for candidates similar to `name`, or ``""``."""
    import difflib  # here: loading the extension is to be fast

    if len(name) > _LONGEST_WORD:  # pasted, not misspelt; comparing would take long
        return ""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = [each for each in by_lower if len(name) > _STEM and each.startswith(name.lower())]
    close = close[:limit] or difflib.get_close_matches(name.lower(), by_lower, limit, cutoff)
    if not close:
        return ""
    return "Did you mean " + " or ".join(by_lower[match] for match in close) + "?"


_STEM = 3  # characters, from which on a name may be the beginning of the one that was meant
_LONGEST_WORD = 260  # characters: a path is shown in full where a file system takes it
_LONGEST_TEXT = 480
_LONGEST_STEP = 700  # a command with two paths is of no use without its middle


def _shortened(what: str, hint: str) -> tuple[str, str]:
    """Shorten what a user pasted, so that a message stays one that is read."""
    what, hint = (_LONG_WORD.sub(_ends, text) for text in (what, hint))
    what = _cut(what, max(_LONGEST_TEXT - len(hint), _LONGEST_TEXT // 2))
    return what, _cut(hint, _LONGEST_STEP)


_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD},}}")


def _ends(word: re.Match[str]) -> str:
    return _cut(word[0], 113)  # as long as a name in a message about an image


def _cut(text: str, most: int) -> str:
    """Return a text of at most `most` characters: its beginning, ``...`` and its end."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 3]}...{text[len(text) - end :]}"


def reason(error: BaseException) -> str:
    """Return the type and the first line of the text of an exception: ``"KeyError: 'x'"``.

    Of an error of the operating system, and of libraries that say no more of what it is, that is
    its own words alone: ``"Permission denied"``, ``"image file is truncated"``.
    """
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    try:
        text = str(error).strip()
    except Exception:
        text = ""
    if not text:
        return type(error).__name__
    said = text.splitlines()[0]
    return said if type(error) is OSError else f"{type(error).__name__}: {said}"
