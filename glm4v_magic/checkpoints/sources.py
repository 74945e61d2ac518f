"""From what a user names to the files that a model is made of: a checkpoint, and maybe an adapter.

`resolve`, which loads, and `architecture`, which plans, both begin here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from glm4v_magic.checkpoints import hub
from glm4v_magic.checkpoints.foreign import refuse_foreign_folder
from glm4v_magic.checkpoints.hub import ADAPTER_WEIGHTS, CONFIGS
from glm4v_magic.checkpoints.names import named, named_in_path
from glm4v_magic.checkpoints.places import Place, cached_elsewhere, find_place, not_found
from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.core.hub_page import is_hub_page, read_hub_page
from glm4v_magic.core.model_shape import MadeOf
from glm4v_magic.core.wording import counted, printable
from glm4v_magic.images.messages import one_line
from glm4v_magic.imports import import_whole
from glm4v_magic.outside import expanded, is_file, is_folder, is_there, listed_names, path_text

if TYPE_CHECKING:
    from glm4v_magic.checkpoints.adapters import Adapter

__all__ = ["Source", "find_source"]

# What reading the files of a checkpoint needs.
_READERS = ("numpy", "pydantic.type_adapter", "safetensors")

Fetch = Callable[[str, str | None], Path | None]
"""Downloads a repository if it holds an adapter alone; returns its folder, or ``None``."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a model is made of.

    Attributes:
        name: name of the checkpoint.
        place: where its weights are.
        revision: commit, branch or tag to download; of the base, where the name is an adapter's.
        adapter: adapter to merge into them; ``None`` without one.
        base: what the base of the adapter is called, by itself or by the user; empty if the adapter
            was given for a model.
        made_of: what was given beside the name to find it, see `core.model_shape.MadeOf`.
    """

    name: str
    place: Place
    revision: str | None = None
    adapter: Adapter | None = None
    base: str = ""
    made_of: MadeOf = ()

    @property
    def other_base(self) -> str:
        """The base that the adapter names, if it is called otherwise than the one here."""
        trained_on = "" if self.adapter is None else self.adapter.base
        known = {_last_part(str(each)) for each in (self.place.text, *self.place.folders)}
        if self.place.published is not None:
            known.add(self.place.published.name.lower())
        names = {_last_part(trained_on), (named_in_path(trained_on) or "").lower()}
        cached = cached_elsewhere(trained_on)
        if cached is not None and cached.revision == self.revision:
            names.add(_last_part(cached.repository))
        return "" if not trained_on or names & known else trained_on

    def missing(self) -> CheckpointError:
        """Return the error that the weights are not on this machine."""
        if self.adapter is None or not self.base:
            return not_found(self.place.repository)
        what = f"{_wanted(self.adapter, self.base)}, which is not here."
        if self.base == self.adapter.base:
            base = _likely(self.base)
            if self.revision is not None and find_place(self.place.text).folders:
                base = self.place.text
                what = (
                    f"{_wanted(self.adapter, self.base)} in the revision "
                    f"{printable(self.revision)}, which is not here; another one is."
                )
            return CheckpointError(what, code="base_not_here", base=base)
        return CheckpointError(what, not_found(self.base).hint)

    @contextmanager
    def naming_adapter(self) -> Iterator[None]:
        """Say of errors of the weights inside the block which adapter they are wanted for."""
        if self.adapter is None or not self.base:
            yield
            return
        with _naming(self.adapter, self.base):
            yield


@contextmanager
def _naming(adapter: Adapter, base: str) -> Iterator[None]:
    """Say of errors inside the block that they are about the base of an adapter.

    Args:
        adapter: the adapter.
        base: what its base is called.
    """
    try:
        yield
    except (CheckpointError, OptionError) as error:
        why = re.sub(r"^The(?=\b|re\b)", "the", error.what)
        error.what = f"{_wanted(adapter, base)}: {why}"
        if base == adapter.base and error.code == type(error).code:
            error.advise(error.hint, code="base_not_here", base=_likely(base))
        raise


def _wanted(adapter: Adapter, base: str) -> str:
    is_own = base == adapter.base
    how = "was trained on" if is_own else "is to be merged into"
    return f"The adapter {adapter.folder} {how} {printable(base)!r}"


def _likely(base: str) -> str:
    """Return another name of a published model that a base seems to be, or else ``FOLDER``."""
    page = read_hub_page(base) or cached_elsewhere(base)
    repository = base if page is None else page.repository
    name = named_in_path(repository)
    known = None if name is None else named(name)
    if known is None:
        return "FOLDER"
    is_itself = named(repository) is not None
    return known.same_sizes or ("FOLDER" if is_itself else known.name)


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1].lower()


def find_source(
    text: str,
    revision: str | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    fetch: Fetch | None = None,
) -> Source:
    """Find what a model is made of.

    Args:
        text: what the user typed; see `places.find_place`.
        revision: commit, branch or tag of a repository.
        base: model that the adapter is for; ``None`` for what the adapter says.
        lora: adapter for the model.
        fetch: downloads adapters; ``None`` to look on this machine only.

    Raises:
        CheckpointError: if an adapter cannot be used, or nothing says what its base is.
        OptionError: if `base` or `lora` have no meaning here.
    """
    text, revision = _repository(text, revision)
    found = _found(text, revision, base, lora, fetch)
    made_of: MadeOf = ()
    if revision is not None:
        made_of = (*made_of, ("revision", revision))
    if base is not None:
        made_of = (*made_of, ("base", os.fspath(base)))
    if lora is not None:
        made_of = (*made_of, ("lora", os.fspath(lora)))
    return replace(found, made_of=made_of)


def _found(
    text: str,
    revision: str | None,
    base: str | os.PathLike[str] | None,
    lora: str | os.PathLike[str] | None,
    fetch: Fetch | None,
) -> Source:
    place = _with_adapter(find_place(text, revision), revision, fetch)
    for folder in place.folders:
        _require_config(folder)
    if not place.folders and lora is None:  # an error of a line needs no pydantic
        if base is not None and place.published is None:
            raise not_found(text)
        _refuse_base(text, base)
        return Source(place.name, place, revision)
    import_whole(*_READERS)
    from glm4v_magic.checkpoints.adapters import holds_adapter, read_adapter

    adapters = [folder for folder in place.folders if holds_adapter(folder)]
    if lora is not None:
        if adapters:
            raise OptionError(
                f"{text} is an adapter itself, and only one is merged.",
                code="adapter_twice",
            )
        if base is not None and os.fspath(base) != text:
            raise OptionError(
                f"The adapter is merged into {text}, and not into {one_line(str(base))}.",
                code="base_beside_lora",
            )
        other, its_revision = _repository(path_text(lora, "The adapter", OptionError))
        added = _with_adapter(find_place(other, its_revision), its_revision, fetch)
        return Source(place.name, place, revision, read_adapter(_only(added)))
    if not adapters:
        _refuse_base(text, base)
        return Source(place.name, place, revision)
    adapter = read_adapter(adapters[0])
    return _with_base(place.name, adapter, base)


def _repository(text: str, revision: str | None = None) -> tuple[str, str | None]:
    """Return the repository of a page of the hub, and its revision; any other name as it is.

    Raises:
        CheckpointError: if it is a page, but not of a model.
        OptionError: if the page is of another revision.
    """
    if is_there(expanded(text)):
        return text, revision
    page = read_hub_page(text)
    if page is None and is_hub_page(text):
        raise CheckpointError(
            f"{one_line(text)} is a page, but not that of a model.",
            "Give the page of a model, or its name: owner/name.",
        )
    if page is None:
        return text, revision
    if None not in (revision, page.revision) and revision != page.revision:
        raise OptionError(
            f"The page is of the revision {page.revision}, and {revision} is asked for.",
            "Leave one of them out.",
        )
    return page.repository, revision or page.revision


def _require_config(folder: Path) -> None:
    """Raise CheckpointError if a folder has no config, but other weights, or folders with one.

    Trainers leave such a folder for each of their steps. An adapter without its config is refused,
    too.
    """
    if not any(is_file(folder / name) for name in CONFIGS):
        for weights in ADAPTER_WEIGHTS:
            if is_file(folder / weights):
                raise CheckpointError(
                    f"{folder} holds the weights of an adapter, {weights}, but no {CONFIGS[1]}.",
                    "Give the folder that peft has saved the adapter in.",
                )
    if any((folder / name).exists() for name in CONFIGS):
        return
    _refuse_folders_inside(folder, CONFIGS)
    if not any(listed_names(folder, ending) for ending in (".safetensors", ".bin")):
        refuse_foreign_folder(folder)


def _refuse_folders_inside(folder: Path, names: Sequence[str]) -> None:
    """Raise CheckpointError if what is looked for is in folders of a folder.

    Args:
        folder: the folder, without any of the files.
        names: files that tell it, the more telling one first.
    """
    for name in names:
        inner = sorted(each.name for each in folder.iterdir() if is_file(each / name))
        if inner:
            raise CheckpointError(
                f"{folder} holds no {name}, but {counted(len(inner), 'folder')} with one: "
                f"{one_line(', '.join(inner[:3]))}{', ...' if len(inner) > 3 else ''}.",
                "Give one of them.",
            )


def _refuse_base(text: str, base: object) -> None:
    if base is not None:
        raise OptionError(
            f"{text} is not an adapter that could be merged into {one_line(str(base))}.",
            code="base_of_no_adapter",
        )


def _with_adapter(place: Place, revision: str | None, fetch: Fetch | None) -> Place:
    """Return a place with the folder of an adapter that has been downloaded for it, if any."""
    is_begun = _is_begun(place)
    if fetch is None and is_begun:
        raise hub.not_whole(place.text, revision)
    if place.published is not None or "/" not in place.text:
        return place
    if fetch is None or (place.folders and not is_begun):
        return place
    fetched = fetch(place.text, revision)
    return place if fetched is None else replace(place, folders=(fetched,))


def _is_begun(place: Place) -> bool:
    """Tell whether the download of an adapter was stopped before its weights."""
    if not place.in_cache or not any(is_file(each / CONFIGS[1]) for each in place.folders):
        return False
    import_whole(*_READERS)
    from glm4v_magic.checkpoints.adapters import holds_adapter

    return all(
        holds_adapter(each) and not any(is_file(each / name) for name in ADAPTER_WEIGHTS)
        for each in place.folders
    )


def _only(place: Place) -> Path:
    """Return the folder of an adapter, which may hold whole weights, too."""
    from glm4v_magic.checkpoints.adapters import adapter_beside, holds_adapter

    if not place.folders:
        raise not_found(place.text, "adapter")
    for folder in place.folders:
        if holds_adapter(folder) or adapter_beside(folder) is not None:
            return folder
    if not is_file(place.folders[0] / CONFIGS[1]):
        _refuse_folders_inside(place.folders[0], CONFIGS[1:])
    raise CheckpointError(
        f"{place.folders[0]} is not an adapter: it holds no adapter_config.json, or whole weights.",
        "Give the folder that peft has saved the adapter in.",
    )


def _base_here(adapter: Adapter) -> tuple[str, str | None]:
    """Return where the base of an adapter may be here, and its revision.

    A path may be relative to where it was trained, or to the adapter. One in the cache of another
    machine tells a repository, of which another revision may be in the cache here.
    """
    text = adapter.base
    for around in (adapter.folder.parent, adapter.folder):
        if not is_folder(text) and is_folder(around / text):
            return str(around / text), None
    cached = None if is_there(expanded(text)) else cached_elsewhere(text)
    if cached is not None:
        is_here = find_place(cached.repository, cached.revision).folders
        return cached.repository, cached.revision if is_here else None
    repository, revision = _repository(text)
    is_repository = "/" in repository and not is_there(expanded(repository))
    return repository, adapter.base_revision if is_repository and revision is None else revision


def _with_base(name: str, adapter: Adapter, base: str | os.PathLike[str] | None) -> Source:
    """Find the base of an adapter.

    Args:
        name: name of the adapter.
        adapter: the adapter.
        base: what the user calls its base; ``None`` for what it says itself.
    """
    from glm4v_magic.checkpoints.adapters import holds_adapter

    if base is None and not adapter.base:
        raise CheckpointError(
            f"The adapter {adapter.folder} does not say which model it was trained on.",
            code="base_not_here",
            base="FOLDER",
        )
    text = adapter.base if base is None else os.fspath(base)
    with _naming(adapter, text):
        repository, revision = _base_here(adapter) if base is None else _repository(text)
        found = find_place(repository, revision)
        for folder in found.folders:
            _require_config(folder)
    if any(map(holds_adapter, found.folders)):
        raise CheckpointError(
            f"{found.text} is an adapter itself, so that {adapter.folder} cannot be merged into "
            "it.",
            "Merge them one after the other with peft (merge_and_unload).",
        )
    return Source(name, found, revision, adapter, text)
