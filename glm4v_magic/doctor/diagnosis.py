"""`diagnose`: from facts to findings, without touching the machine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.remarks import remark
from glm4v_magic.core.wording import counted, readable_bytes
from glm4v_magic.doctor.advice import fit, review
from glm4v_magic.doctor.facts import Facts
from glm4v_magic.doctor.finding import Finding
from glm4v_magic.doctor.software import software
from glm4v_magic.hardware.gpus import FoundGPU
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.decision import unseen

__all__ = ["diagnose"]

_NVML = "nvidia-ml-py"
_BUILDS = "https://download.pytorch.org/whl/"
_BLACKWELL = (10, 0)
"""Compute capability of the first GPUs that builds for CUDA 12.6 have no kernels for."""


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Judge the facts: software, driver, GPUs, the model on them, disk, hub."""
    return (
        *software(facts),
        *_driver(facts),
        *_gpus(facts),
        *_links(facts),
        *_files(facts),
        *_revision(facts),
        fit(facts),
        *review(facts),
        _disk(facts),
        _hub(facts),
    )


def _files(facts: Facts) -> Iterator[Finding]:
    """Judge the files of a checkpoint; yields nothing if they can be loaded."""
    if facts.fault is not None:
        why, *step = facts.fault
        yield Finding("checkpoint", "fail", "its files cannot be loaded", why, tuple(step))
    if facts.is_alone:
        yield Finding(
            "checkpoint",
            "warn",
            "not looked at",
            "A file was named: its sizes are judged, and a load takes no file.",
            "Name the folder that it is in.",
        )


def _driver(facts: Facts) -> Iterator[Finding]:
    driver = facts.driver
    if driver is not None:
        cuda = "an unknown CUDA" if driver.cuda is None else "CUDA {}.{}".format(*driver.cuda)
        yield Finding("driver", "ok", f"{driver.version or 'unknown version'}, runs up to {cuda}")
    if facts.torch_cuda is not None:
        yield _cuda(facts)


def _cuda(facts: Facts) -> Finding:
    torch, driver = facts.torch_cuda, facts.driver
    assert torch is not None
    if torch.usable:
        return Finding("CUDA", "ok", f"torch is built for {torch.built_for or 'another platform'}")
    if torch.built_for is None:
        asked = next((each.required for each in facts.packages if each.name == "torch"), "")
        command = f'pip install --force-reinstall "torch{asked}"'
        step = remark("install", command=command)
        return Finding("CUDA", "fail", "torch cannot be imported", torch.problem, step)
    newest = None if driver is None else driver.cuda
    build = None if newest is None else _build(newest, facts.found_gpus)
    # pip takes a build for another CUDA for the same version, and leaves it.
    command = f"pip install --force-reinstall torch --index-url {_BUILDS}{build}"
    if not torch.built_for:
        found = "torch is built without CUDA"
        why = torch.problem or "The GPUs are of no use."
        step = remark("install", command=command) if build else remark("install_other_torch")
        return Finding("CUDA", "fail", found, why, step)
    found = f"torch is built for {torch.built_for}, and CUDA does not start"
    # Within a major version of CUDA any driver will do (CUDA compatibility guide, "minor version
    # compatibility").
    if newest is not None and int(torch.built_for.partition(".")[0]) > newest[0]:
        why = "The driver runs up to CUDA {}.{}.".format(*newest)
        if build is None:
            return Finding("CUDA", "fail", found, why, "Update the driver; restart the computer.")
        step = remark("update_driver_or_torch", command=command)
        return Finding("CUDA", "fail", found, why, step)
    why = torch.problem or "Torch does not say why."
    return Finding("CUDA", "fail", found, why, remark("restart_and_look"))


def _build(newest: tuple[int, int], gpus: tuple[FoundGPU, ...]) -> str | None:
    """Return the build of torch for a driver: the oldest that is published and runs on the GPUs.

    That runs most GPUs and drivers: newer builds have left the older ones out.
    """
    if newest >= (12, 8) and any((gpu.capability or (0, 0)) >= _BLACKWELL for gpu in gpus):
        return "cu128"
    return "cu126" if newest >= (12, 0) else "cu118" if newest >= (11, 0) else None


def _gpus(facts: Facts) -> Iterator[Finding]:
    if facts.described is not None:
        if not facts.described:
            yield Finding("GPUs", "ok", "none, as described")
        for gpus in _alike(facts.described):
            found = f"{gpus[0].name}, {readable_bytes(gpus[0].total_bytes)}"
            yield Finding(
                _span(gpus), "ok", f"{found}{' each' if len(gpus) > 1 else ''}, described"
            )
        return
    if not facts.found_gpus:
        yield _no_gpu(facts)
    for gpu in facts.found_gpus:
        yield _gpu(gpu)
    if not all(gpu.index_certain for gpu in facts.found_gpus):
        yield Finding(
            "order of GPUs",
            "warn",
            "not certain",
            "The GPUs differ: CUDA numbers them by speed, the driver by bus.",
            remark("set_and_restart", setting="CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        )


def _alike(gpus: tuple[GPU, ...]) -> list[list[GPU]]:
    groups = groupby(gpus, key=lambda gpu: (gpu.name, gpu.total_bytes))
    return [list(group) for _, group in groups]


def _span(gpus: list[GPU]) -> str:
    first, last = gpus[0].index, gpus[-1].index
    return f"cuda:{first}" if first == last else f"cuda:{first}-{last}"


def _no_gpu(facts: Facts) -> Finding:
    if facts.driver is None:
        library = next((p for p in facts.packages if p.name == _NVML), None)
        if library is not None and not library.installed:
            why = f"Without {_NVML} nothing tells which GPUs there are."
            return Finding("GPUs", "warn", "not known", why, f"Run pip install {_NVML}.")
        step = remark("describe_gpus")
        return Finding("GPUs", "warn", "none", "There is no NVIDIA driver.", step)
    if facts.visible is not None:
        return Finding(
            "GPUs",
            "warn",
            "none",
            f"CUDA_VISIBLE_DEVICES is {facts.visible!r}, which shows no GPU.",
            remark("unset_visible"),
        )
    why = "The driver finds no GPU that this process may use."
    look = (
        "Run nvidia-smi: if it lists no GPU, give one to this machine, container or job; if one is "
        "in MIG mode without an instance, end that mode with nvidia-smi -mig 0."
    )
    return Finding("GPUs", "warn", "none", why, look)


def _gpu(gpu: FoundGPU) -> Finding:
    subject = f"cuda:{gpu.index}"
    name = f"{gpu.name}{', MIG instance' if gpu.mig else ''}"
    if gpu.total_bytes is None:
        why = "The driver does not tell its memory, so nothing can be planned on it."
        return Finding(
            subject, "warn", f"{name}, size unknown", why, remark("describe_gpus_with_size")
        )
    others = gpu.other_bytes or 0
    found = f"{name}, {readable_bytes(gpu.total_bytes)}"
    if 2 * others < gpu.total_bytes:
        taken = f", {readable_bytes(others)} in use by others" if others else ""
        return Finding(subject, "ok", found + taken)
    why = f"Other programs and the driver hold {readable_bytes(others)} of it."
    step = "Look for other processes with nvidia-smi and stop those you do not need."
    return Finding(subject, "warn", found, why, step)


def _links(facts: Facts) -> Iterator[Finding]:
    links = facts.links
    if not links:
        return
    subject = "peer access"
    known = [link for link in links if link.peer is not None]
    if not known:
        yield Finding(subject, "ok", "not known", "The driver does not tell.")
        return
    fast = sum(bool(link.nvlink) for link in links)
    without = [link for link in known if not link.peer]
    found = (
        f"{counted(len(links), 'pair')} of GPUs: {len(known) - len(without)} with peer access, "
        f"{fast} over NVLink"
    )
    if not without:
        yield Finding(subject, "ok", found)
        return
    pair = " and ".join(f"cuda:{index}" for index in without[0].gpus)
    more = f" and {counted(len(without) - 1, 'more pair')}" if len(without) > 1 else ""
    obstacle = f" ({without[0].obstacle})" if without[0].obstacle else ""
    yield Finding(
        subject,
        "warn",
        found,
        f"Between {pair}{more} there is none{obstacle}: copies go through the host's memory, so "
        "each hop is slower.",
        remark("fewer_hops"),
    )


def _revision(facts: Facts) -> Iterator[Finding]:
    """Yield a finding if a revision is asked for that is not here; only the hub knows it."""
    for note in unseen(facts.shape):
        yield Finding("revision", "warn", "not looked at", note)


def _disk(facts: Facts) -> Finding:
    units = price(facts.shape, Workload(dtype=facts.shape.dtype))
    size = sum(unit.weight_bytes for unit in units)
    subject, disk = "disk", facts.disk
    if facts.is_here:
        return Finding(subject, "ok", f"nothing to download for {facts.shape.name}")
    needed = f"{facts.shape.name} takes {readable_bytes(size)}"
    if disk is None:
        why = f"{needed}; without huggingface_hub it is not known where that would be."
        step = remark("install", command="pip install huggingface_hub")
        return Finding(subject, "warn", "free space not known", why, step)
    if disk.problem:
        found = f"{disk.folder} cannot be used"
        step = remark("other_folder", variable=disk.variable)
        return Finding(subject, "fail", found, f"{disk.problem}; {needed}.", step)
    found = f"{readable_bytes(disk.free_bytes)} free for {disk.folder}"
    if disk.cached_bytes >= size:
        return Finding(subject, "ok", f"{found}; {needed} and is here already")
    here = f", {readable_bytes(disk.cached_bytes)} of it are here" if disk.cached_bytes else ""
    short = size - disk.cached_bytes - disk.free_bytes
    if short <= 0:
        return Finding(subject, "ok", f"{found}; {needed}{here}")
    return Finding(
        subject,
        "fail",
        found,
        f"{needed}{here}: {readable_bytes(short)} are short.",
        remark("free_disk", variable=disk.variable),
    )


def _hub(facts: Facts) -> Finding:
    hub = facts.hub
    if hub is None:
        return Finding("hub", "ok", "not asked", "", remark("ask_the_hub"))
    if not hub.problem:
        return Finding("hub", "ok", f"{hub.endpoint} answers")
    return Finding(
        "hub",
        "warn",
        f"{hub.endpoint} cannot be reached",
        f"{hub.problem[:1].upper()}{hub.problem[1:]}.",
        "Load a local folder, or what is in the hub's cache: neither needs a network.",
    )
