"""Adapters merged into single weights, by peft itself.

The modules of an adapter are merged one at a time, each in a model that holds nothing else, as its
weight is read from its file. So it does not matter where the weights go, whether they are quantised
afterwards, and how large the model is. What peft does to a module does not depend on any other.
"""

from __future__ import annotations

import copy
import math
import re
import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from peft import (
    PeftModel,
    TrainableTokensConfig,
    get_peft_config,
    set_peft_model_state_dict,
)
from torch import Tensor, nn

from glm4v_magic.checkpoints.adapters import Merges, Part
from glm4v_magic.checkpoints.files import TensorInfo
from glm4v_magic.core.errors import CheckpointError, reason
from glm4v_magic.core.wording import printable
from glm4v_magic.images.messages import one_line

__all__ = ["Merger", "require_finite"]

_PREFIX = "base_model.model."
_TOKENS = ".token_adapter"
_AT_ONCE = 2**24  # values
_HALF, _SINGLE = torch.finfo(torch.float16).max, torch.finfo(torch.float32).max
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")  # of a layer
_BY_LAYER = ("layers_to_transform", "rank_pattern", "alpha_pattern")
"""Parts of a configuration that may treat layers differently."""
_TOGETHER = "Do its adapter_config.json and its weights belong together?"
_PACKAGES = "Install the versions that it asks for, or uninstall that package."


class Merger:
    """Merges an adapter into weights.

    Args:
        merges: the changes of the adapter.
        dtype: dtype of the weights once they are loaded, in which they are merged.
    """

    def __init__(self, merges: Merges, dtype: torch.dtype) -> None:
        self._merges, self._dtype = merges, dtype
        self._config = _config_of(merges.config)
        # Weights are read by several threads, and peft keeps some of its state in the process.
        self._lock = threading.Lock()

    @property
    def changed(self) -> Collection[str]:
        """Names of the weights that it changes."""
        return self._merges.parts.keys()

    def merged(self, name: str, weight: Tensor, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        """Return a weight with all changes of the adapter.

        Args:
            name: its name in the files of the base.
            weight: its value.
            read: reads a weight of the adapter.

        Raises:
            CheckpointError: if peft cannot merge it, or it has values that are not finite.
        """
        changed = weight.to(self._dtype, copy=True)
        for part in self._merges.parts[name]:
            rows = slice(None) if part.rows is None else slice(*part.rows)
            state = {key: read(info).clone() for key, info in part.tensors.items()}
            for key, value in state.items():
                require_finite(key, value)
            with self._lock:
                changed[rows] = self._merge(part, changed[rows], state)
        if not _is_finite(changed):
            if self._dtype == torch.float16:
                raise CheckpointError(
                    f"With the adapter, {one_line(name)} has values beyond the {_HALF:,.0f} of "
                    "float16.",
                    "Load it in another dtype: bfloat16 or float32.",
                )
            raise _infinite(name)
        return changed

    def require_bounded(self, largest: Mapping[str, float]) -> None:
        """Raise CheckpointError if matrices of an adapter are so large that nothing holds both.

        Args:
            largest: largest absolute value of each weight of the adapter.
        """
        for name, parts in self._merges.parts.items():
            for part in parts:
                sizes = [largest[key] for key in part.tensors if ".lora_" in key]
                if len(sizes) > 1 and math.prod(sizes) > _SINGLE:
                    raise _infinite(name)

    def require_mergeable(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Try to merge without values, each kind of module once.

        Args:
            tensors: weights of the base.

        Raises:
            CheckpointError: if peft cannot merge the adapter.
        """
        is_by_layer = any(self._merges.config.get(name) for name in _BY_LAYER)
        tried: set[object] = set()
        for name, parts in self._merges.parts.items():
            for part in parts:
                first, last = part.rows or (0, tensors[name].shape[0])
                shape = (last - first, *tensors[name].shape[1:])
                shapes = {key: info.shape for key, info in part.tensors.items()}
                kind = str((shape, shapes))
                kind = kind if is_by_layer else _NUMBER.sub("", kind)
                if kind not in tried:
                    tried.add(kind)
                    state = {key: torch.empty(each, device="meta") for key, each in shapes.items()}
                    weight = torch.empty(shape, dtype=self._dtype, device="meta")
                    with self._lock:
                        self._merge(part, weight, state)

    def _merge(self, part: Part, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        root = _nested(part.module, _module_for(weight, state))
        config, named = copy.deepcopy(self._config), dict(state)
        if weight.is_meta:  # some ways to begin a training look into the values
            config.init_lora_weights = False
        try:
            if any(_TOKENS in key for key in state):
                config = _of_tokens(config, part.module)
                named = {key.replace(_TOKENS, ""): value for key, value in state.items()}
            else:
                config.trainable_token_indices = None
            unexpected, missing, whole = _merge_all(root, config, named, part.module)
        except Exception as error:  # of whatever a configuration leads to
            said = _container_said(config, part.module, error) or printable(_said(error))
            raise CheckpointError(
                f"peft cannot merge {one_line(part.module)}: {said}.",
                _PACKAGES if isinstance(error, ImportError) else _TOGETHER,
            ) from error
        if unexpected:
            raise CheckpointError(
                f"peft does not know what to do with {_in_files(unexpected[0])} of the adapter.",
                _TOGETHER,
            )
        if missing:  # peft would begin a training with values of its own there
            raise CheckpointError(
                f"The adapter has no {_in_files(missing[0])}.",
                "Was it saved as a whole?",
            )
        return whole


def _infinite(name: str) -> CheckpointError:
    return CheckpointError(
        f"With the adapter, {one_line(name)} has values that are not finite.",
        "Are its lora_alpha and its weights as they were trained?",
    )


def require_finite(name: str, weight: Tensor) -> None:
    """Raise CheckpointError if a weight of an adapter has a value that is not finite.

    Args:
        name: its name, for the message.
        weight: its value.
    """
    if not _is_finite(weight):
        raise CheckpointError(
            f"The adapter has values in {one_line(name)} that are not finite.",
            "Its training went astray: take an earlier step of it.",
        )


def _is_finite(weight: Tensor) -> bool:
    # In parts: the mask of a whole vocabulary would take half of its bytes again.
    return all(bool(part.isfinite().all()) for part in weight.flatten().split(_AT_ONCE))


def _said(error: Exception) -> str:
    """Return what is wrong; in torch's messages about sizes the first line only tells where."""
    lines = str(error).strip().splitlines()
    if isinstance(error, RuntimeError) and len(lines) > 1:
        return lines[1].strip().rstrip(".")
    return reason(error).rstrip(".")


def _in_files(name: str) -> str:
    """Return the name that a weight of peft's model has in an adapter's files."""
    return one_line(re.sub(r"\.default(?=\.|$)", "", name.removeprefix(_PREFIX)))


def _container_said(config: Any, module: str, error: Exception) -> str:
    """Return in words that the configuration names a module which holds others, if that is it.

    peft shows the whole module then, of which the first line tells nothing.
    """
    if not str(error).startswith("Target module "):
        return ""
    targets = config.target_modules
    targets = [targets] if isinstance(targets, str) else targets or ()
    *around, _ = module.split(".")
    for depth, name in enumerate(around):
        path = ".".join(around[: depth + 1])
        if any(each in (name, path) or path.endswith(f".{each}") for each in targets):
            named = f"its target_modules name {one_line(name)}"
            return f"{named}, which holds layers and is not one itself"
    return ""


def _merge_all(
    root: nn.Module, config: Any, state: Mapping[str, Tensor], module: str
) -> tuple[list[str], list[str], Tensor]:
    """Return what peft does not know of an adapter, what is missing, and a module's new values."""
    with warnings.catch_warnings():
        # It says which patterns of the configuration meet none of the modules, of which there is
        # one here.
        warnings.simplefilter("ignore")
        model = PeftModel(root, config)  # not one for a task: this has no method of a model
        named = {f"{_PREFIX}{key}": value for key, value in state.items()}
        loaded = set_peft_model_state_dict(model, named)
        missing = [key for key in loaded.missing_keys if ".base_layer." not in key]
        merged = model.merge_and_unload().get_submodule(module)
        values: Tensor = (
            merged.weight if getattr(merged, "bias", None) is None else merged.bias
        ).data
    return loaded.unexpected_keys, missing, values


def _of_tokens(config: Any, module: str) -> TrainableTokensConfig:
    """Return the configuration of what a low-rank adapter does to some tokens of an embedding."""
    given = config.trainable_token_indices
    if isinstance(given, Mapping):
        (indices,) = (each for name, each in given.items() if module.endswith(name))
    else:
        indices = given
    leaf = module.rpartition(".")[2]
    return TrainableTokensConfig(token_indices=list(indices), target_modules=[leaf])


def _config_of(described: Mapping[str, Any]) -> Any:
    import inspect

    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = PEFT_TYPE_TO_CONFIG_MAPPING[described["peft_type"]]
    # Other versions write more keys, and peft's own reader leaves them out as well.
    known = inspect.signature(kind.__init__).parameters
    kept = {key: value for key, value in described.items() if key in known or key == "peft_type"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells trainers of the task that is left out here
            config = get_peft_config({**kept, "task_type": None, "inference_mode": True})
    except Exception as error:
        raise CheckpointError(
            f"peft cannot read the adapter's configuration: {printable(_said(error))}."
        ) from error
    config.modules_to_save = None
    return config


def _module_for(weight: Tensor, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a module of the kind that an adapter changes, with its weight, or its bias alone."""
    shape = weight.shape
    module: nn.Module
    if len(shape) == 1:  # only IA3 scales biases, whatever their weights are
        module = _empty_beside(weight, next(iter(state.values())))
        module.bias = nn.Parameter(weight.clone(), requires_grad=False)
        return module
    with torch.device("meta"):
        if any(".lora_embedding_" in key or "token" in key for key in state):
            module = nn.Embedding(*shape)
        elif weight.dim() == 2:
            module = nn.Linear(shape[1], shape[0], bias=False)
        else:
            kind = nn.Conv2d if weight.dim() == 4 else nn.Conv3d
            module = kind(shape[1], shape[0], tuple(shape[2:]), bias=False)  # type: ignore[arg-type]
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return module


def _empty_beside(bias: Tensor, scales: Tensor) -> nn.Module:
    """Return a module with a bias, and the weight that IA3 looks at to tell what it scales."""
    with torch.device(bias.device):
        if scales.dim() == 2:
            return nn.Linear(scales.shape[1], bias.shape[0])
        kind = nn.Conv2d if scales.dim() == 4 else nn.Conv3d
        return kind(scales.shape[1], bias.shape[0], 1)


def _nested(name: str, module: nn.Module) -> nn.Module:
    """Return a module that holds another under a name with dots, as in the whole model."""
    for part in reversed(name.split(".")):
        outer = nn.Module()
        outer.add_module(part, module)
        module = outer
    return module
