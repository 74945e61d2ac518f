"""`gather`: collects the facts that the doctor judges. Only this module touches the machine.

Versions come from the metadata of installed packages, required versions from this package's own
metadata: nothing is imported for them. Torch, which takes seconds to import, is imported only if
NVML finds a GPU, because only torch knows which CUDA it was built for and whether CUDA starts.
"""

from __future__ import annotations

import importlib
import os
import platform
import queue
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from glm4v_magic.core.errors import CheckpointError, OptionError, reason
from glm4v_magic.core.gpu_spec import ANY_CPU, CPU, GPU, gpus_of
from glm4v_magic.core.installed import installed_version
from glm4v_magic.core.model import DEMOS
from glm4v_magic.core.model_shape import ModelShape
from glm4v_magic.core.remarks import Remark
from glm4v_magic.hardware.cpu import cpu_here
from glm4v_magic.hardware.driver import Driver, Link, find_driver, find_links
from glm4v_magic.hardware.gpus import FoundGPU, find_gpus, import_torch_if_needed, is_apple
from glm4v_magic.hardware.host import host_bytes
from glm4v_magic.outside import expanded, is_file

__all__ = ["HUB_SECONDS", "MODEL", "Disk", "Facts", "Hub", "Package", "TorchCuda", "gather"]

MODEL = "GLM-4V-9B"
"""Checkpoint that is judged by default."""

_AS_EFFECTIVE = {"effective_ids": True} if os.access in os.supports_effective_ids else {}

HUB_SECONDS = 3.0
"""Seconds to wait for an answer of the hub."""

_OWN = "glm4v_magic"
_USERS_EXTRAS = (
    "compressed",
    "forms",
    "lora",
    "notebook",
    "parquet",
    "pdf",
    "quantize",
    "ray",
    "video",
)  # the others are for those who change this package


@dataclass(frozen=True, slots=True)
class Package:
    """A package that this one requires.

    Attributes:
        name: name of the distribution.
        required: required versions, ``>=5.18,<6``; empty for any.
        installed: installed version; empty if it is not installed.
        imported: version imported in this process; empty if it is not imported.
        extra: extra that requires it; empty if it is always required.
    """

    name: str
    required: str
    installed: str
    imported: str = ""
    extra: str = ""


@dataclass(frozen=True, slots=True)
class TorchCuda:
    """CUDA as torch sees it.

    Attributes:
        built_for: CUDA version of its build, ``12.6``; empty for a build without CUDA, ``None``
            if torch cannot be imported.
        usable: whether CUDA starts.
        problem: what torch said when it did not; may be empty.
    """

    built_for: str | None
    usable: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """Disk of the hub's cache.

    Attributes:
        folder: the hub's cache.
        free_bytes: free space on its disk.
        cached_bytes: bytes of the checkpoint in the cache, complete or not.
        variable: variable of the environment that names another folder.
        problem: why nothing can be downloaded to it; empty if it can.
    """

    folder: str
    free_bytes: int
    cached_bytes: int
    variable: str = "HF_HOME"
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Hub:
    """Result of a request to the hub.

    Attributes:
        endpoint: address of the hub.
        problem: why it could not be reached; empty if it answered.
    """

    endpoint: str
    problem: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about this machine.

    Attributes:
        shape: sizes of the model that is judged.
        python: version of Python.
        python_required: versions of Python that this package requires; empty if it is not
            installed.
        packages: packages that this package and its extras require.
        is_here: whether the model's files are on this machine, so that nothing is downloaded.
        is_alone: whether a ``config.json`` was named, which a load does not take.
        fault: why its files cannot be loaded, and what to do; ``None`` if they can be, or will be
            downloaded.
        found_gpus: the GPUs of this machine; empty if others are described.
        described: GPUs to judge instead; ``None`` for those of this machine.
        driver: NVIDIA's driver; ``None`` without one, or if GPUs are described.
        visible: value of ``CUDA_VISIBLE_DEVICES``; ``None`` if it is not set.
        torch_cuda: CUDA as torch sees it; ``None`` if torch was not asked.
        links: links between the GPUs.
        host_bytes: memory of the host that this process may use; ``None`` if not known.
        disk: where downloads go; ``None`` without huggingface_hub, which knows.
        hub: result of a request to the hub; ``None`` if it was not asked.
        cpu: the CPU of the machine.
    """

    shape: ModelShape
    python: str
    python_required: str
    packages: tuple[Package, ...]
    is_here: bool = False
    is_alone: bool = False
    fault: tuple[str | Remark, ...] | None = None
    found_gpus: tuple[FoundGPU, ...] = ()
    described: tuple[GPU, ...] | None = None
    driver: Driver | None = None
    visible: str | None = None
    torch_cuda: TorchCuda | None = None
    links: tuple[Link, ...] = ()
    host_bytes: int | None = None
    disk: Disk | None = None
    hub: Hub | None = None
    cpu: CPU = ANY_CPU

    @property
    def gpus(self) -> tuple[GPU, ...]:
        """The GPUs to plan for; those of unknown size are left out."""
        if self.described is not None:
            return self.described
        return tuple(found.gpu for found in self.found_gpus if found.total_bytes is not None)


def gather(
    gpus: str | Sequence[GPU] | None = None,
    *,
    hub: bool = False,
    model: str = MODEL,
    revision: str | None = None,
    base: str | None = None,
    lora: str | None = None,
) -> Facts:
    """Look at this machine.

    Args:
        gpus: judge these instead of the GPUs of this machine, or their description.
        hub: also ask whether the hub can be reached; takes at most 3 s.
        model: the checkpoint to judge, as `checkpoints.architecture` takes it.
        revision: commit, branch or tag of its repository.
        base: model that the adapter is for, likewise.
        lora: folder of an adapter for the model.

    Raises:
        CheckpointError: if there is no such model.
    """
    from glm4v_magic.checkpoints.architecture import architecture

    # what is wrong with an adapter is a finding among others
    made_of: dict[str, Any] = {"revision": revision, "base": base, "lora": lora}
    shape = architecture(model, **made_of, tries_adapter=False).shape()
    alone = is_file(model)
    is_here, fault = _beside(model) if alone else _files(model, made_of)
    if gpus is None:
        import_torch_if_needed()
    found_gpus = find_gpus() if gpus is None else ()
    torch_cuda = _torch_cuda() if found_gpus else None
    if torch_cuda is not None and any(found.total_bytes is None for found in found_gpus):
        found_gpus = find_gpus()  # once it is imported, torch knows sizes that NVML does not tell
    required, packages = _requirements()
    return Facts(
        shape=shape,
        python=platform.python_version(),
        python_required=required,
        packages=packages,
        is_here=is_here,
        is_alone=alone,
        fault=fault,
        found_gpus=found_gpus,
        described=None if gpus is None else gpus_of(gpus),
        driver=find_driver() if gpus is None else None,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch_cuda=torch_cuda,
        links=find_links(found_gpus),
        host_bytes=host_bytes(),
        disk=_disk(shape.name, is_main=not shape.unseen_revision),
        hub=_hub() if hub else None,
        cpu=cpu_here(),
    )


def _beside(config: str) -> tuple[bool, None]:
    """Return whether weights are beside a ``config.json``; what they are is not looked at."""
    from glm4v_magic.checkpoints.files import holds_weights

    return holds_weights(expanded(config).parent), None


def _files(model: str, made_of: Mapping[str, Any]) -> tuple[bool, tuple[str | Remark, ...] | None]:
    """Return whether a checkpoint's files are here, and why `load` would refuse them.

    What is not here, or was cut short, is downloaded as the checkpoint is loaded. It is a fault
    only where downloads are switched off: then a load refuses it, too, and asks nobody.
    """
    from glm4v_magic.checkpoints import hub, resolve
    from glm4v_magic.checkpoints.files import is_cut_short
    from glm4v_magic.checkpoints.kinds import BESIDE_WEIGHTS
    from glm4v_magic.checkpoints.sources import find_source

    place = find_source(model, **made_of).place
    is_offline = hub.is_offline()
    is_whole = bool(place.folders) and not (
        place.in_cache and any(is_cut_short(each, BESIDE_WEIGHTS) for each in place.folders)
    )
    if not place.folders and not is_offline:
        return False, None
    try:
        checkpoint = resolve(model, **made_of, download=is_offline)
        if place.text not in DEMOS:
            checkpoint.require_usable()
    except (CheckpointError, OptionError) as error:  # or a package that it needs is missing
        return is_whole, error.text if is_whole or is_offline else None
    except ImportError:  # another finding tells which package is missing
        pass
    return True, None


def _requirements() -> tuple[str, tuple[Package, ...]]:
    """Return the versions of Python and the packages required; empty if not installed."""
    try:
        own = metadata.metadata(_OWN)
        lines = metadata.requires(_OWN) or []
    except metadata.PackageNotFoundError:
        return "", ()
    found: dict[str, Package] = {}
    for requirement in map(Requirement, lines):
        for extra in ("", *_USERS_EXTRAS):
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": extra}):
                found.setdefault(requirement.name, _package(requirement, extra))
                break
    return own["Requires-Python"] or "", tuple(found.values())


def _package(requirement: Requirement, extra: str) -> Package:
    name = requirement.name
    installed = installed_version(name)
    # Not getattr: a module may compute the attribute, and warn that it is going away.
    imported = getattr(sys.modules.get(name.replace("-", "_")), "__dict__", {}).get(
        "__version__", ""
    )
    # torch's version is a subclass of str.
    return Package(name, str(requirement.specifier), installed, str(imported), extra)


def _torch_cuda() -> TorchCuda:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        return TorchCuda(None, usable=False, problem=f"{reason(error)}.")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available() or is_apple()
    # torch warns of a driver that is too old, and names its version in the first line.
    problem = str(said[0].message).strip().partition("\n")[0] if said and not usable else ""
    return TorchCuda(torch.version.cuda or "", usable, problem)


def _disk(model: str, *, is_main: bool = True) -> Disk | None:
    """Look at the disk that a model is downloaded to.

    Args:
        model: its name.
        is_main: whether the revision is one of which the cache may have files.
    """
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None
    folder = Path(HF_HUB_CACHE).expanduser().absolute()
    others = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")  # where one is set, HF_HOME changes nothing
    variable = next((name for name in others if name in os.environ), "HF_HOME")
    here = (path for path in (folder, *folder.parents) if os.path.lexists(path))
    existing = next(here, folder)  # itself, where its drive is not there
    problem, free = "", 0
    try:
        if not existing.is_dir():
            problem = f"{existing} is no folder"
        elif not os.access(existing, os.W_OK | os.X_OK, **_AS_EFFECTIVE):
            problem = f"{existing} cannot be written to"
        free = 0 if problem else shutil.disk_usage(existing).free
    except OSError as error:  # the disk is gone
        problem = f"{existing}: {reason(error)}"
    if problem:
        return Disk(str(folder), 0, 0, variable, problem)
    found = max(_downloads(folder, model), default=0) if is_main else 0
    return Disk(str(folder), free, found, variable)


def _downloads(cache: Path, model: str) -> Iterator[int]:
    """Yield the bytes of each cached repository that is named like the model, whoever owns it."""
    for repository in cache.glob("models--*--*"):
        if repository.name.rpartition("--")[2].lower() != model.lower():
            continue
        size = 0
        for folder, _, names in os.walk(repository):
            for path in (Path(folder, name) for name in names):
                # Snapshots are links to the files, which would count twice.
                if not path.is_symlink():
                    size += path.stat().st_size if path.is_file() else 0
        yield size


def _hub() -> Hub | None:
    from glm4v_magic.checkpoints.hub import is_offline

    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    if is_offline():
        return Hub(constants.ENDPOINT, "HF_HUB_OFFLINE is set")
    answer: queue.SimpleQueue[str] = queue.SimpleQueue()
    # No timeout limits a name lookup, so it runs in a thread that may be left behind.
    thread = threading.Thread(
        target=lambda: answer.put(_problem_with(constants.ENDPOINT)), daemon=True
    )
    thread.start()
    try:
        problem = answer.get(timeout=HUB_SECONDS)
    except queue.Empty:
        problem = f"no answer within {HUB_SECONDS:g} s"
    return Hub(constants.ENDPOINT, problem)


def _problem_with(url: str) -> str:
    """Return why `url` does not answer; empty if it does."""
    import httpx

    if not url.startswith(("http://", "https://")):
        return "its address is not http or https"
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=HUB_SECONDS) as response:
            return f"it answers {response.status_code}" if response.is_error else ""
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        return reason(error)
