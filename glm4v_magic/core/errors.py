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
    ├── FormatError                 an answer that is not in the asked form; it is kept
    └── BusyError                   another call is running

    GenerationInterrupted           a KeyboardInterrupt that carries the partial answer
    MapInterrupted                  a KeyboardInterrupt that carries the rows that are done

Both derive from `KeyboardInterrupt`, not from `Glm4vError`: an interrupt
must pass every ``except Exception`` on its way up, so that "Run All" stops.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glm4v_magic.core.conversation import Answer, Generation
    from glm4v_magic.core.plan import Plan

__all__ = [
    "BusyError",
    "CheckpointError",
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
    "MapInterrupted",
    "OptionError",
    "OutOfMemoryError",
    "PlacementError",
    "PromptError",
    "did_you_mean",
    "reason",
]


class Glm4vError(Exception):
    """Base of all errors of this package.

    Args:
        what: what happened, and where: one sentence that names the file, option or module.
        hint: what to do next: one sentence, or nothing when `what` already tells.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} {self.hint}".rstrip()


class InputError(Glm4vError):
    """Something the user typed or passed cannot be used."""


class OptionError(InputError):
    """An unknown or malformed option, command or setting."""


class PromptError(InputError):
    """An empty prompt, or a ``{{expression}}`` that cannot be evaluated."""


class ImageError(InputError):
    """An image that is missing, unreadable, unreachable or too large."""


class ConversationError(InputError):
    """Messages that the checkpoint in use cannot take."""


class CheckpointError(Glm4vError):
    """A checkpoint folder, its configuration, tokenizer or weights cannot be used."""


class PlacementError(Glm4vError):
    """Something about GPUs, device maps and plans that none of its branches says better."""


class GPUDescriptionError(PlacementError):
    """A description of GPUs such as ``4x16GiB`` that cannot be read."""


class DeviceMapError(PlacementError):
    """A device map that misses, repeats or invents a module or a GPU."""


class DoesNotFitError(PlacementError):
    """No split of the model fits on the given GPUs.

    Args:
        what: as in `Glm4vError`.
        hint: likewise.
        plan: the best split, over-full; ``None`` if no GPU has any room.
    """

    def __init__(self, what: str, hint: str = "", plan: Plan | None = None) -> None:
        super().__init__(what, hint)
        self.plan = plan


class OutOfMemoryError(Glm4vError):
    """A GPU or the host ran out of memory. A model that was loaded before a call still is."""


class EngineError(Glm4vError):
    """The engine, or the server behind it, failed."""


class FormatError(Glm4vError):
    """The model's answer is not in the form that was asked for; `Session` adds the `answer`."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.answer: Answer | None = None


class BusyError(Glm4vError):
    """Another call is running."""


class GenerationInterrupted(KeyboardInterrupt):
    """A generation was stopped by an interrupt; `generation` holds what was said until then.

    `Session.ask` adds `answer`: the same text with its question, images and model.
    """

    def __init__(self, generation: Generation) -> None:
        super().__init__("the answer was interrupted")
        self.generation = generation
        self.answer: Answer | None = None


class MapInterrupted(KeyboardInterrupt):
    """A prompt mapped over many rows was stopped; `result` holds what `Session.map` would return.

    Rows that were not asked have neither answer nor error. Asking the same again goes on where
    this stopped.
    """

    def __init__(self, result: object, answered: int, total: int) -> None:
        super().__init__(f"{answered} of {total} rows are answered")
        self.result = result
        self.answered = answered
        self.total = total


def did_you_mean(name: str, candidates: Iterable[str], limit: int = 3) -> str:
    """Say which of `candidates` look like `name`: ``"Did you mean a.png or b.png?"``, or ``""``."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=0.6)
    if not close:
        return ""
    return "Did you mean " + " or ".join(by_lower[match] for match in close) + "?"


def reason(error: BaseException) -> str:
    """Return the type and the first line of the text of an exception: ``"KeyError: 'x'"``."""
    try:
        text = str(error).strip()
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
