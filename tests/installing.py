"""Environments of Python in which pip does what a message says, without an index.

What is installed are the packages of the interpreter that runs the tests, or made ones; only where
their files come from is a stand-in: a wheel that says what the package is, and links to it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from shells import ROOT

__all__ = ["Environment"]


class Environment:
    """A virtual environment that has all packages of this interpreter but some.

    Attributes:
        site: folder of its packages.
        wheels: folder that its pip finds packages in.
    """

    def __init__(self, folder: Path, without: tuple[str, ...] = ()) -> None:
        """Make one in `folder`, which has not the distributions `without`."""
        self.folder, self.wheels = folder, folder / "wheels"
        self.wheels.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        (self.site,) = (folder / "venv").glob("lib/*/site-packages")
        others, self._hidden = folder / "others", folder / "hidden"
        for each in (others, self._hidden):
            each.mkdir()
        entries = {name: _entries(name) for name in without}
        away = {entry for found in entries.values() for entry in found}
        for place in map(Path, metadata.distribution("pytest").locate_file("").iterdir()):
            if place.name not in away and place.name != "__pycache__":
                (others / place.name).symlink_to(place)
        (self.site / "others.pth").write_text(f"{others}\n")
        pip = folder / "venv" / "bin" / "pip"
        python = folder / "venv" / "bin" / "python"
        pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip --python "{python}" "$@"\n')
        pip.chmod(0o755)
        for name, found in entries.items():
            self._keep(name, found)

    def _keep(self, name: str, entries: dict[str, Path]) -> None:
        """Let pip find a hidden distribution: its own description, and links to its files."""
        kept = self._hidden / name
        kept.mkdir()
        for entry, place in entries.items():
            if not entry.endswith(".dist-info"):
                (kept / entry).symlink_to(place)
        about = str(metadata.distribution(name).read_text("METADATA"))
        self.wheel(name, metadata.version(name), {f"{_plain(name)}.pth": f"{kept}\n"}, about)

    def wheel(self, name: str, version: str, files: dict[str, str], about: str = "") -> None:
        """Write a wheel of a pure package for pip to find."""
        info = f"{_plain(name)}-{version}.dist-info"
        about = about or f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        kind = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        whole = {**files, f"{info}/METADATA": about, f"{info}/WHEEL": kind}
        record = "".join(f"{path},,\n" for path in (*whole, f"{info}/RECORD"))
        with zipfile.ZipFile(
            self.wheels / f"{_plain(name)}-{version}-py3-none-any.whl", "w"
        ) as file:
            for path, text in {**whole, f"{info}/RECORD": record}.items():
                file.writestr(path, text)

    def script(self, name: str) -> None:
        """Install a program of a package that is here."""
        (found,) = metadata.entry_points(group="console_scripts", name=name)
        file = self.folder / "venv" / "bin" / name
        code = f"import {found.module}; {found.module}.{found.attr}()"
        file.write_text(f"#!{self.folder / 'venv' / 'bin' / 'python'}\n{code}\n")
        file.chmod(0o755)

    def put(self, name: str, version: str, files: dict[str, str]) -> None:
        """Install a made package, as if pip had done it some time ago."""
        self.wheel(name, version, files)
        (wheel,) = self.wheels.glob(f"{_plain(name)}-{version}-*.whl")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(self.site)
        wheel.unlink()

    def shell(self, command: str, cwd: Path | None = None, given: str = "") -> str:
        """Run a command as it is written, with what is typed then; returns what it says."""
        done = subprocess.run(
            command,
            shell=True,
            cwd=cwd or self.folder,
            env=self._variables(),
            input=given,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, code: str, *arguments: str, given: str = "", **variables: str) -> str:
        """Run a program in a new process of this environment; returns what it prints.

        Args:
            code: the program.
            arguments: its arguments.
            given: what it reads from standard input.
            variables: variables of its environment besides those of this process.
        """
        done = subprocess.run(
            [self.folder / "venv" / "bin" / "python", "-c", code, *arguments],
            cwd=self.folder,
            env={**self._variables(), **variables},
            input=given,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _variables(self) -> dict[str, str]:
        others = (each for each in os.environ.items() if not each[0].startswith(("PIP_", "CUDA_")))
        return {
            **dict(others),
            "HOME": str(self.folder),
            "PATH": f"{self.folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name)


def _entries(name: str) -> dict[str, Path]:
    """Return what a distribution has in the folder of packages: entry -> its place."""
    found = metadata.distribution(name)
    names = {
        file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")
    }
    return {each: Path(str(found.locate_file(each))) for each in names}
