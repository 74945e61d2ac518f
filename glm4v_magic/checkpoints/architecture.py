"""Models known by their ``config.json`` alone: enough for a plan and a dry run.

No weights, no tokenizer, no download. Each family implements `Architecture` in its own module;
`architecture` finds the configuration and picks the family by its ``model_type``.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from glm4v_magic.checkpoints.foreign import refuse_foreign_file, refuse_foreign_folder
from glm4v_magic.checkpoints.kinds import require_known
from glm4v_magic.checkpoints.names import PUBLISHED
from glm4v_magic.core.errors import CheckpointError, OptionError, did_you_mean
from glm4v_magic.core.hub_page import MAIN_BRANCHES
from glm4v_magic.core.model import DEMOS, Architecture
from glm4v_magic.core.wording import printable
from glm4v_magic.outside import expanded, is_file, path_text

if TYPE_CHECKING:
    from glm4v_magic.checkpoints.contents import Contents
    from glm4v_magic.checkpoints.sources import Source

__all__ = ["architecture", "of_contents"]


def architecture(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    base: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    tries_adapter: bool = True,
) -> Architecture:
    """Find a configuration and return its architecture; that of an adapter is its base's.

    Args:
        source: folder, repository in a cache, name of a published checkpoint (in any case, with or
            without its owner), one of `DEMOS`, or a ``config.json``.
        revision: commit, branch or tag of a repository; of a published checkpoint that is not here
            the configuration of the main branch is taken, and `unseen_revision` says so.
        base: model that the adapter is for; ``None`` for what it says itself.
        lora: folder of an adapter for the model.
        tries_adapter: whether to refuse an adapter that peft cannot merge, as a load does; imports
            torch and peft if there is an adapter, and nothing is tried without peft.

    Raises:
        CheckpointError: if there is no such configuration, it describes an unknown kind of model,
            a value in it is invalid, or peft cannot merge the adapter.
        OptionError: if `source` is not a name, a revision is given for a folder or a file, or
            `base` or `lora` have no meaning.
    """
    from glm4v_magic.checkpoints.places import folders_beside, refuse_revision
    from glm4v_magic.checkpoints.sources import find_source

    text = path_text(source, "The model", OptionError)
    path = expanded(text)
    if is_file(path):
        refuse_revision(text, revision)
        refuse_foreign_file(text, path)
        return _read(text, path)
    found = find_source(text, revision, base=base, lora=lora)
    place = found.place
    is_own = found.name == place.name
    name = place.published.name if is_own and place.published is not None else found.name
    for folder in place.folders:
        if not place.in_cache or (folder / "config.json").is_file():
            read = _read(name if is_own else text, folder / "config.json", found, tries_adapter)
            read.made_of = found.made_of
            return read
    if place.published is not None and place.published.configured_as is not None:
        files = resources.files("glm4v_magic.checkpoints") / "published"
        with resources.as_file(files / f"{place.published.configured_as}.json") as file:
            made = _read(name, file)
        made.made_of = found.made_of
        if found.revision is not None and found.revision not in MAIN_BRANCHES:
            made.unseen_revision = found.revision
        return made
    if found.adapter is not None:
        raise found.missing()
    if place.published is not None:
        raise CheckpointError(
            f"The configuration of {place.published.name} comes with its files only, and they are "
            "not here.",
            f"Download it and give its folder; {place.published.same_sizes} has the same sizes in "
            "bfloat16, which is what it takes where FP8 is restored.",
        )
    known = ", ".join(PUBLISHED)
    at = "" if revision is None else f" of the revision {printable(revision)}"
    raise CheckpointError(
        f"There is no configuration {text!r}{at}: no such folder or file, and not one of {known}.",
        did_you_mean(path.name, [*folders_beside(path), *PUBLISHED, *DEMOS]),
    )


def _read(
    name: str, file: Path, source: Source | None = None, tries_adapter: bool = False
) -> Architecture:
    """Return the architecture of a configuration, and of the weights that are beside it.

    Args:
        name: name of the checkpoint.
        file: its ``config.json``.
        source: what the model is made of; ``None`` for the file alone.
        tries_adapter: as for `architecture`.
    """
    from glm4v_magic.checkpoints.adapted import with_adapter
    from glm4v_magic.checkpoints.contents import read_config_alone, read_contents
    from glm4v_magic.checkpoints.files import holds_weights

    has_weights = file.name == "config.json" and holds_weights(file.parent)
    with nullcontext() if source is None else source.naming_adapter():
        alone = read_config_alone(file, is_beside_weights=has_weights)
        found = of_contents(name, alone, str(file))
        if source is not None and not has_weights:
            refuse_foreign_folder(file.parent)
    if not has_weights:
        return found
    try:
        contents = read_contents(file.parent, None if source is None else source.adapter)
    except CheckpointError:  # of weights that are missing or damaged, a plan needs none
        return of_contents(name, read_config_alone(file), str(file))
    adapter = contents.adapter if source is None or source.adapter is None else source.adapter
    if adapter is not None:
        contents = with_adapter(contents, adapter, str(file))
    if tries_adapter:
        _require_mergeable(contents)
    return of_contents(name, contents, str(file))


def _require_mergeable(contents: Contents) -> None:
    """Raise what a load would say of an adapter, where peft can tell."""
    from importlib.util import find_spec

    from glm4v_magic.checkpoints.pretrained import require_mergeable

    if contents.merges is not None and find_spec("peft") is not None:
        require_mergeable(contents.merges, contents.tensors)


def of_contents(name: str, contents: Contents, where: str) -> Architecture:
    """Return the architecture of a folder's content.

    Args:
        name: name of the checkpoint.
        contents: what is in the folder.
        where: path of its ``config.json``, for messages.

    Raises:
        CheckpointError: if the model is not one that can be used, a value is missing or invalid, or
            weights are quantised in a way that cannot be loaded.
    """
    from glm4v_magic.checkpoints.glm4v_9b import layout

    config = contents.config
    require_known(config, where)
    if layout.matches(config):
        from glm4v_magic.checkpoints.glm4v_9b.architecture import Glm4v9bArchitecture

        return Glm4v9bArchitecture.of(name, contents, where)
    from glm4v_magic.checkpoints.glm_native.architecture import NativeArchitecture

    return NativeArchitecture.of(name, contents, where)
