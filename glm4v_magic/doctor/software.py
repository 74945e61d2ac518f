"""Findings on Python and packages: required and installed versions, known problems."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from glm4v_magic.core.remarks import remark
from glm4v_magic.core.wording import counted
from glm4v_magic.doctor.facts import Facts, Package
from glm4v_magic.doctor.finding import Finding

__all__ = ["software"]

_SHOWN = ("torch", "transformers", "accelerate", "ipywidgets", "ipykernel", "bitsandbytes")

_BACKGROUND = {"torch": "the first multi-GPU fix for GLM-4V asked for >=2.3.1"}

_TRAPS = {
    ("ipykernel", "7.4.0"): (
        "This version hands clicks to the loop that is busy: widgets of other packages, a Stop "
        "button among them, hear nothing until the cell ends. Those of glm4v_magic hear it.",
        remark("stop_in_another_way", command='pip install "ipykernel==7.3.0"'),
    )
}
"""(package, version) -> problem and work-around."""


def software(facts: Facts) -> Iterator[Finding]:
    """Judge Python, the most important packages, and others whose versions do not fit."""
    yield _python(facts)
    by_name = {package.name: package for package in facts.packages}
    for name in _SHOWN:
        if name in by_name:
            yield _package(by_name[name])
    others = [package for package in facts.packages if package.name not in _SHOWN]
    findings = [_package(package) for package in others]
    yield from (finding for finding in findings if finding.verdict != "ok")
    fine = sum(finding.verdict == "ok" for finding in findings)
    if fine:
        yield Finding("other packages", "ok", f"{counted(fine, 'package')} as asked")


def _python(facts: Facts) -> Finding:
    if not facts.python_required:
        return Finding(
            "Python",
            "warn",
            facts.python,
            "glm4v_magic is not installed, so the versions that it needs are not known.",
            'Run "pip install ." in its folder.',
        )
    asked = f"glm4v_magic asks for {facts.python_required}."
    if _suits(facts.python, facts.python_required):
        return Finding("Python", "ok", facts.python, asked)
    return Finding(
        "Python", "fail", facts.python, asked, "Make an environment with a newer Python."
    )


def _package(package: Package) -> Finding:
    name, installed = package.name, package.installed
    command = f'pip install "{name}{package.required}"'
    asked = _asked(package)
    if not installed:
        if package.extra:
            why = f"Only the extra {package.extra!r} needs it."
            return Finding(
                name, "ok", "not installed", why, f"Install it if you need that: {command}."
            )
        return Finding(name, "fail", "not installed", asked, remark("install", command=command))
    suits = _suits(installed, package.required)
    if suits is None:
        why = f"{asked} This version cannot be compared with that."
        step = remark("install_if_older", command=command)
        return Finding(name, "warn", installed, why, step)
    if not suits:
        return Finding(name, "fail", installed, asked, remark("install", command=command))
    if _differ(package.imported, installed):
        found = f"{installed} installed, {package.imported} imported"
        return Finding(name, "warn", found, remark("replaced_meanwhile"), remark("restart"))
    if (name, installed) in _TRAPS:
        return Finding(name, "warn", installed, *_TRAPS[name, installed])
    return Finding(name, "ok", installed, asked)


def _asked(package: Package) -> str:
    background = _BACKGROUND.get(package.name, "")
    asked = f"glm4v_magic asks for {package.required or 'any version'}"
    return f"{asked}; {background}." if background else f"{asked}."


def _suits(version: str, required: str) -> bool | None:
    """Tell whether `version` satisfies `required`; ``None`` if it cannot be parsed.

    Builds between releases count as the release they lead to: NVIDIA's containers call theirs
    ``2.6.0a0+ecf3bae40a.nv25.1``.
    """
    try:
        base = Version(version).base_version
    except InvalidVersion:
        return None
    return SpecifierSet(required).contains(base)


def _differ(imported: str, installed: str) -> bool:
    """Tell whether two versions differ in more than their build, ``+cu124``."""
    try:
        return bool(imported) and Version(imported).public != Version(installed).public
    except InvalidVersion:
        return False
