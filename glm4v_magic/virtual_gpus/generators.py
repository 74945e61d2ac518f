"""``torch.Generator("cuda")`` for virtual GPUs, and its check against the device of a tensor."""

from __future__ import annotations

from typing import Any

import torch

from glm4v_magic.virtual_gpus.tensor import CPU, leaves

__all__ = ["DefaultGenerator", "VirtualGenerator", "check_generator", "default_generators"]

_Generator = torch.Generator


class _AnyGenerator(type(_Generator)):  # type: ignore[misc]
    """Makes ``isinstance(generator, torch.Generator)`` true of every generator."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Generator)


class VirtualGenerator(_Generator, metaclass=_AnyGenerator):
    """Takes the place of ``torch.Generator``: a CPU generator that reports ``cuda:k``.

    Its numbers are those of a CPU generator with the same seed, not those of CUDA.
    """

    _device: torch.device

    def __new__(cls, device: int | str | torch.device = "cpu") -> VirtualGenerator:
        """Make a generator for `device`; that of a bare ``cuda`` is the current GPU."""
        generator = super().__new__(cls, CPU)  # type: ignore[call-arg]
        where = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if where.type == "cuda" and where.index is None:
            where = torch.device("cuda", torch.cuda.current_device())
        # those that torch.cuda.default_generators has are made before the GPUs are there
        is_asked = cls is VirtualGenerator and where.type == "cuda"
        if is_asked and where.index >= torch.cuda.device_count():
            raise RuntimeError(f"CUDA error: invalid device ordinal: there is no {where}")
        generator._device = where
        return generator

    def __init__(self, device: int | str | torch.device = "cpu") -> None:
        """Nothing is left to do after `__new__`."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device it was made for."""
        return self._device

    def clone_state(self) -> VirtualGenerator:
        """Return another generator of the same device in the same state."""
        clone = VirtualGenerator(self._device)
        clone.set_state(self.get_state())
        return clone


class DefaultGenerator(VirtualGenerator):
    """One of ``torch.cuda.default_generators``: stands for the default generator of the CPU."""

    def get_state(self) -> torch.Tensor:
        """Return the state of the CPU's generator."""
        return torch.get_rng_state()

    def set_state(self, new_state: torch.Tensor) -> DefaultGenerator:
        """Set the state of the CPU's generator."""
        torch.set_rng_state(new_state)
        return self

    def manual_seed(self, seed: int) -> DefaultGenerator:
        """Seed the CPU's generator."""
        torch.default_generator.manual_seed(seed)
        return self

    def seed(self) -> int:
        """Seed the CPU's generator at random, and return the seed."""
        return torch.default_generator.seed()

    def initial_seed(self) -> int:
        """Return the seed of the CPU's generator."""
        return torch.default_generator.initial_seed()


def default_generators(count: int) -> tuple[DefaultGenerator, ...]:
    """Return the default generator of each GPU; all are that of the CPU."""
    return tuple(DefaultGenerator(index) for index in range(count))


def check_generator(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check the generator among the arguments of a call against the device of its result.

    Raises:
        RuntimeError: with the text of ``check_generator`` (aten/src/ATen/core/Generator.h), which
            compares the types of the devices alone: a generator of ``cuda:0`` serves ``cuda:1``.
    """
    generator = kwargs.get("generator")
    if generator is None:
        generator = next((arg for arg in args if isinstance(arg, _Generator)), None)
    if generator is None:
        return
    device = kwargs.get("device")
    if device is None:
        tensor = next(iter(leaves(args, kwargs)), None)
        device = torch.get_default_device() if tensor is None else tensor.device
    expected, found = torch.device(device).type, generator.device.type
    if expected != found and expected in ("cpu", "cuda"):
        raise RuntimeError(f"Expected a '{expected}' device type for generator but found '{found}'")
