"""Put a device map on a model: move weights, add hooks where the hidden state changes GPUs.

accelerate's own `dispatch_model` hooks every module of every layer, and each hook moves all its
inputs. Here accelerate's hook is only where a hidden state may come from another device: a layer
that follows one on the same device has none. Inputs that all layers share (rotary tables, masks,
lengths) reach each device once per step (`dispatch.copies`): GLM-4V-9B's own layers call that
themselves, those of transformers get a light hook of ours.

A map may also split a layer. GLM-4V-9B's own code brings the operands of its arithmetic together;
transformers' does not. There the layer gets one device for its own arithmetic, and its parts on
other devices return their results to it. Where even the weights of one module are apart, such as
the weight and the bias of a linear layer, it computes where most of them are, and the rest visit it
while it does.

Modules on the ``cpu`` of a map that also names GPUs are offloaded: their weights stay in host
memory and are copied to a GPU whenever they run.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    ModelHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from torch import nn

from glm4v_magic.core.placement import Place
from glm4v_magic.dispatch.copies import shared
from glm4v_magic.dispatch.devices import device_of
from glm4v_magic.planning.device_map import place_of

__all__ = ["Dispatched", "dispatch", "dispatch_like_accelerate"]

_TABLES = "position_embeddings"
_POSITIONS = "position_ids"
_PIXELS = ("pixel_values", "pixel_values_videos")


@dataclass(slots=True)
class Dispatched:
    """A model with a device map in force.

    Attributes:
        model: the model.
        inbound: names of modules with a hook that moves their input to their device, in the order
            of the module tree.
        sharing: names of layers with a hook for the inputs that all layers share.
    """

    model: nn.Module
    inbound: tuple[str, ...] = ()
    sharing: tuple[str, ...] = ()

    def undo(self) -> None:
        """Remove all hooks; offloaded weights return to host memory, others stay on their GPUs."""
        _remove_hooks(self.model)
        self.inbound = self.sharing = ()


@dataclass(frozen=True, slots=True)
class _Part:
    """A module and its devices.

    Attributes:
        name: name in the model.
        module: the module.
        weights_on: device that its weights stay on.
        runs_on: device that it computes on; differs from `weights_on` if it is offloaded.
        is_cut: whether the device is only that of its own arithmetic, not of all its weights.
        visiting: weights that a cut module reads and that are elsewhere, and the device of each.
        returns: whether its result goes back to the device of its input.
    """

    name: str
    module: nn.Module
    weights_on: torch.device
    runs_on: torch.device
    is_cut: bool = False
    returns: bool = False
    visiting: Mapping[str, torch.device] = field(default_factory=dict)

    @property
    def is_offloaded(self) -> bool:
        return self.weights_on != self.runs_on


def dispatch(
    model: nn.Module,
    device_map: Mapping[str, Place],
    execution_map: Mapping[str, Place] | None = None,
) -> Dispatched:
    """Put a device map on a model; it replaces an earlier one.

    Args:
        model: the model, its weights on any device except ``meta``.
        device_map: map that `device_map.check` returned, or that of a plan.
        execution_map: device that offloaded modules run on; by default that of the word embeddings.
    """
    _remove_hooks(model)
    target = _Target(model, device_map, {**device_map, **(execution_map or {})})
    inbound: list[str] = []
    sharing: list[str] = []
    previous: _Part | None = None
    for part in target.parts():
        keys = target.keys_to_leave(part.module)
        if not target.aligns_itself and target.is_layer(part.module):
            add_hook_to_module(part.module, _ShareHook(part.runs_on, keys), append=True)
            sharing.append(part.name)
        visits = _place_weights(part, keys)
        if not visits and not target.follows(previous, part):
            hook = AlignDevicesHook(part.runs_on, io_same_device=part.returns, skip_keys=keys)
            add_hook_to_module(part.module, hook, append=True)
            inbound.append(part.name)
        if part.visiting:
            hook = _VisitHook(part.visiting, part.runs_on)
            add_hook_to_module(part.module, hook, append=True)
        previous = part
    target.place_own_weights()
    if target.has_several_devices:
        # The ids of a prompt go to the embedding, and logits come back to the device of the ids;
        # pixels go directly to the tower.
        root = AlignDevicesHook(
            target.home, io_same_device=True, skip_keys=[*target.skipped, *_PIXELS]
        )
        add_hook_to_module(model, root)
    model.hf_device_map = dict(device_map)  # type: ignore[assignment]  # as accelerate does
    return Dispatched(model, tuple(inbound), tuple(sharing))


def dispatch_like_accelerate(model: nn.Module, device_map: Mapping[str, Place]) -> None:
    """Put a device map on a model the way ``from_pretrained`` does: hooks on every module.

    For comparison. accelerate does not move parameters that the map names directly, and warns of
    them; ``from_pretrained`` has placed them by then.
    """
    modules = {name for name, _ in model.named_modules()}
    for name, place in device_map.items():
        if name not in modules:
            _move_weight(model, name, device_of(place))
    skipped = getattr(model, "_skip_keys_device_placement", None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following device_map keys do not match", UserWarning)
        dispatch_model(
            model, dict(device_map), skip_keys=None if skipped is None else list(skipped)
        )


class _Target:
    """A model and the devices of everything in it.

    Attributes:
        home: device of the embedding, or the first GPU if the embedding is offloaded and no map
            says where it runs.
        skipped: names of arguments that no hook may move.
        aligns_itself: whether the model's own code brings operands to one device.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[str, Place], runs: Mapping[str, Place]
    ) -> None:
        self.model = model
        self.skipped = tuple(getattr(model, "_skip_keys_device_placement", None) or ())
        self.aligns_itself = _TABLES in self.skipped
        self.home = _home(model, runs)
        self._layer_classes = tuple(getattr(model, "_no_split_modules", None) or ())
        self._weights, self._runs = weights, runs

    @property
    def has_several_devices(self) -> bool:
        """Whether inputs and weights may be apart: offloaded weights count, wherever they run."""
        return (
            len({str(place) for places in (self._weights, self._runs) for place in places.values()})
            > 1
        )

    def parts(self) -> Iterator[_Part]:
        """Yield the largest modules on one device, and split modules that contain such modules."""
        return self._parts("", self.model, returns=False)

    def _parts(self, name: str, module: nn.Module, returns: bool) -> Iterator[_Part]:
        sizes = self._sizes(name, module)
        is_called = type(module).forward is not nn.Module.forward  # a list of modules is not
        if is_called and len(sizes) == 1:
            ((weights_on, runs_on),) = sizes
            yield _Part(name, module, weights_on, runs_on, returns=returns)
            return
        children = list(module.named_children())
        if is_called and sizes and self._is_cut(module):
            ((_, largest), _), *_ = sizes.most_common(1)
            visiting = dict(self._apart(name, module, largest))
            yield _Part(name, module, largest, largest, True, returns, visiting)
            returns, children = True, [each for each in children if not _is_only_read(each[1])]
        for child_name, child in children:
            yield from self._parts(f"{name}.{child_name}".lstrip("."), child, returns)

    def _is_cut(self, module: nn.Module) -> bool:
        """Tell whether a module on several devices needs one for its own arithmetic."""
        if self.aligns_itself and next(module.children(), None) is not None:
            return False
        return not self._has_layers(module)

    def _apart(
        self, name: str, module: nn.Module, device: torch.device
    ) -> Iterator[tuple[str, torch.device]]:
        """Yield the weights that the module's code reads and `device` lacks, and their devices."""
        for inner in _read_by(module):
            weights_on, _ = self._place(f"{name}.{inner}".lstrip("."))
            if weights_on != device:
                yield inner, weights_on

    def _sizes(self, name: str, module: nn.Module) -> Counter[tuple[torch.device, torch.device]]:
        """Return the bytes of a module's weights by (device of weights, device of execution)."""
        sizes: Counter[tuple[torch.device, torch.device]] = Counter()
        for inner, tensor in _tensors(module):
            sizes[self._place(f"{name}.{inner}".lstrip("."))] += tensor.nbytes
        return sizes

    def _place(self, name: str) -> tuple[torch.device, torch.device]:
        weights, runs = place_of(self._weights, name), place_of(self._runs, name)
        assert weights is not None  # `device_map.check` raises for a map with gaps
        runs_on = self.home if runs is None or runs == "cpu" else device_of(runs)
        return device_of(weights), runs_on

    def _has_layers(self, module: nn.Module) -> bool:
        """Tell whether a module contains decoder or vision layers."""
        return any(self.is_layer(inner) for inner in module.modules() if inner is not module)

    def is_layer(self, module: nn.Module) -> bool:
        """Tell whether `module` is one that transformers says must not be split."""
        return type(module).__name__ in self._layer_classes

    def follows(self, previous: _Part | None, part: _Part) -> bool:
        """Tell whether `part` takes the output of the layer before, on the same device."""
        if previous is None or previous.runs_on != part.runs_on:
            return False
        if not (self.is_layer(previous.module) and self.is_layer(part.module)):
            return False
        before, _, first = previous.name.rpartition(".")
        after, _, second = part.name.rpartition(".")
        numbered = first.isdigit() and second.isdigit()
        return before == after and numbered and int(second) == int(first) + 1

    def keys_to_leave(self, module: nn.Module) -> list[str]:
        """Return the names of arguments that the hooks of `module` must not move.

        A layer that receives rotary tables does not use the position ids that they were made
        from, unless its attention is flash attention (transformers' ``_is_packed_sequence``).
        """
        keys = list(self.skipped)
        attention = str(getattr(getattr(self.model, "config", None), "_attn_implementation", ""))
        arguments = inspect.signature(type(module).forward).parameters
        if _TABLES in arguments and "flash" not in attention and _POSITIONS not in keys:
            keys.append(_POSITIONS)
        return keys

    def place_own_weights(self) -> None:
        """Move weights that belong directly to a module whose parts are on several devices.

        Where the module's code does not move them to their use, they visit it, and that hook has
        placed them.
        """
        for name, module in self.model.named_modules():
            own = [inner for inner, _ in _tensors(module, recurse=False)]
            movable = self.aligns_itself or self._has_layers(module)
            if own and movable and len(self._sizes(name, module)) > 1:
                for inner in own:
                    path = f"{name}.{inner}".lstrip(".")
                    _move_weight(self.model, path, self._place(path)[0])


class _VisitHook(ModelHook):
    """Brings the weights that a module reads from other devices while it runs.

    Args:
        visiting: names of the weights that are elsewhere, and where each of them stays.
        device: device that the module computes on.
    """

    def __init__(self, visiting: Mapping[str, torch.device], device: torch.device) -> None:
        self._visiting = visiting
        self._device = device
        self._at_home: dict[str, torch.Tensor] = {}

    def init_hook(self, module: nn.Module) -> nn.Module:
        # Whenever a hook is added, accelerate's own moves all weights of the module to itself.
        for name, device in self._visiting.items():
            _move_weight(module, name, device)
        self._at_home = {name: _tensor(module, name) for name in self._visiting}
        return module

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for name, tensor in self._at_home.items():
            _set_tensor(module, name, tensor.detach().to(self._device))
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self._leave(module)
        return output

    def detach_hook(self, module: nn.Module) -> nn.Module:
        self._leave(module)  # after a forward that failed
        return module

    def _leave(self, module: nn.Module) -> None:
        for name, tensor in self._at_home.items():
            _set_tensor(module, name, tensor)


class _ShareHook(ModelHook):
    """Replaces the keyword arguments that all layers share by the copy on the layer's device."""

    def __init__(self, device: torch.device, leave: list[str]) -> None:
        self.device = device
        self.leave = leave

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {
            key: value if key in self.leave else shared(value, self.device)
            for key, value in kwargs.items()
        }


def _remove_hooks(model: nn.Module) -> None:
    remove_hook_from_module(model, recurse=True)
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map


def _home(model: nn.Module, runs: Mapping[str, Place]) -> torch.device:
    get_embedding: Any = getattr(model, "get_input_embeddings", None)
    embedding = get_embedding() if get_embedding else None
    name = next((name for name, module in model.named_modules() if module is embedding), "")
    place = place_of(runs, f"{name}.weight")
    if place is None or place == "cpu":
        place = next((place for place in runs.values() if place != "cpu"), "cpu")
    return device_of(place)


def _place_weights(part: _Part, keys: list[str]) -> bool:
    """Move a part's weights; returns whether the part itself got a hook that loads them."""
    if part.is_cut:
        for name in _read_by(part.module):
            _move_weight(part.module, name, part.visiting.get(name, part.weights_on))
        return False
    if not part.is_offloaded:
        if any(tensor.device != part.weights_on for _, tensor in _tensors(part.module)):
            part.module.to(part.weights_on)
        return False
    part.module.to(part.weights_on)
    visits = False
    for module in _loaded_together(part.module):
        hook = AlignDevicesHook(
            execution_device=part.runs_on,
            offload=True,
            io_same_device=part.returns,
            place_submodules=not _has_lists(module),
            skip_keys=keys,
        )
        add_hook_to_module(module, hook, append=True)
        visits = visits or module is part.module
    return visits


def _loaded_together(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of an offloaded module, each of which is loaded as a whole.

    A part without layers is loaded at once, so that its code may read the weights of its
    submodules; a module with layers loads only its own weights, and its layers one by one.
    """
    if not _has_lists(module):
        yield module
        return
    if next(_tensors(module, recurse=False), None) is not None:
        yield module
    for child in module.children():
        yield from _loaded_together(child)


def _has_lists(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.ModuleList) for inner in module.modules())


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=recurse)
    yield from module.named_buffers(recurse=recurse)


def _is_only_read(module: nn.Module) -> bool:
    """Tell whether the module around it reads its weights without calling it.

    True of the convolution in transformers' linear attention.
    """
    return isinstance(module, nn.Conv1d)


def _read_by(module: nn.Module) -> Iterator[str]:
    """Yield the names of the weights that a module's own code reads."""
    yield from (name for name, _ in _tensors(module, recurse=False))
    for child_name, child in module.named_children():
        if _is_only_read(child):
            yield from (f"{child_name}.{name}" for name, _ in _tensors(child))


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    owner_name, _, attribute = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    return (
        owner.get_buffer(attribute)
        if attribute in owner._buffers
        else owner.get_parameter(attribute)
    )


def _move_weight(model: nn.Module, name: str, device: torch.device) -> None:
    tensor = _tensor(model, name)
    if tensor.device != device:
        _set_tensor(model, name, tensor.detach().to(device))


def _set_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replace a parameter or buffer; a parameter is replaced by a parameter."""
    owner_name, _, attribute = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    elif isinstance(tensor, nn.Parameter):
        owner._parameters[attribute] = tensor
    else:
        trained = owner.get_parameter(attribute).requires_grad
        owner._parameters[attribute] = nn.Parameter(tensor, trained)
