"""Contents of a folder with an adapter: finds the weights that it changes, by a family's names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from glm4v_magic.checkpoints.adapters import Adapter, Find, Merges
from glm4v_magic.checkpoints.contents import Contents, with_vocabulary
from glm4v_magic.checkpoints.glm4v_9b import layout
from glm4v_magic.checkpoints.stored import refuse_adapter
from glm4v_magic.core.wording import counted

__all__ = ["with_adapter"]


def with_adapter(contents: Contents, adapter: Adapter, where: str) -> Contents:
    """Return contents whose weights are changed by an adapter.

    Args:
        contents: contents of the base, whose configuration passed the checks of its family.
        adapter: the adapter.
        where: path of the base's ``config.json``, for messages.

    Raises:
        CheckpointError: if the base is quantised, or the adapter belongs to another model.
    """
    # before names and sizes, which are others where values are packed
    refuse_adapter(contents, where)
    if layout.matches(contents.config):
        find = _find_in_9b(contents.config, contents.tensors)
    else:
        find = _find_in_newer(contents.config, contents.tensors)
    merges = adapter.merges(contents.tensors, find)
    tensors = {**contents.tensors, **merges.replaced}
    config, notes = with_vocabulary(contents.config, tensors)
    merged = f"the adapter {adapter.folder} ({adapter.kind}) {_done(merges)}"
    return replace(
        contents,
        config=config,
        tensors=tensors,
        notes=(merged, *contents.notes, *notes),
        adapter=adapter,
        merges=merges,
    )


def _done(merges: Merges) -> str:
    """Return what an adapter does to how many modules."""
    modules, unchanged = merges.modules, merges.unchanged
    if not unchanged:
        return f"is merged into {counted(modules, 'module')}"
    if merges.is_by_alpha:
        why = f"{'lora_alpha' if merges.config['peft_type'] == 'LORA' else 'alpha'} is 0"
    else:
        why = "product is 0, as before a training"
    if not modules:
        return f"changes nothing: its {why}"
    others = counted(unchanged, "other")
    whose = "" if merges.is_by_alpha else "their "
    return (
        f"is merged into {counted(modules, 'module')}, and leaves {others} unchanged: {whose}{why}"
    )


def _find_in_9b(config: Mapping[str, Any], tensors: Mapping[str, object]) -> Find:
    """Find weights of GLM-4V-9B by published names, or by those of the modules here."""
    ours = layout.published_names(config)

    def find(name: str) -> tuple[str, tuple[int, int] | None] | None:
        place = (name, None) if name in tensors else ours.get(name)
        return place if place is not None and place[0] in tensors else None

    return find


def _find_in_newer(config: Mapping[str, Any], tensors: Mapping[str, object]) -> Find:
    """Find weights by names that versions of transformers have given to their modules."""
    known = {_canonical(name): name for name in tensors}

    @cache
    def of_modules() -> Mapping[str, str]:
        return _by_module(config["model_type"], known)

    def find(name: str) -> tuple[str, tuple[int, int] | None] | None:
        wanted = _canonical(name)
        found = known.get(wanted) or of_modules().get(wanted)
        return None if found is None else (found, None)

    return find


def _by_module(kind: str, known: Mapping[str, str]) -> Mapping[str, str]:
    """Return weights by the names that transformers gives them as it loads them.

    Weights that it joins into one, those of experts, are left out.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    transforms = get_checkpoint_conversion_mapping(kind) or ()
    renamed: dict[str, str] = {}
    for name in known:
        module = name
        for transform in transforms:
            module, _ = transform.rename_source_key(module)
        renamed[name] = module
    counts = Counter(renamed.values())
    return {module: known[name] for name, module in renamed.items() if counts[module] == 1}


def _canonical(name: str) -> str:
    """Return a name without leading ``model.``, but with ``language_model.`` for the text part."""
    short = re.sub(r"^(model\.)+", "", name)
    short = short.replace("language_model.model.", "language_model.", 1)
    if short.startswith("language_model.lm_head."):
        return short.removeprefix("language_model.")
    if short.startswith(("layers.", "embed_tokens.", "norm.")):
        return f"language_model.{short}"
    return short
