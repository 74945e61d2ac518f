"""Settings: defaults of the magics' options, each with its source.

From weak to strong: the built-in defaults; IPython's configuration (``c.Glm4v.temperature = 0``);
the section ``[tool.glm4v_magic]`` of the nearest ``pyproject.toml``, from the current folder
upwards; environment variables such as ``GLM4V_TEMPERATURE``; ``%config Glm4v.temperature = 0``. An
option of a cell is stronger than all of them. ``GLM4V_API_KEY``, the key of a server, is not a
setting: it is never shown, and read only when a request is sent.

`read` is called when the extension is loaded, so nothing here imports more than IPython has
already; ``tomllib`` comes with the first file that has the section.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets import Bool, Float, Int, TraitError, Unicode
from traitlets.config import Configurable
from traitlets.config.loader import Config, DeferredConfigString

from glm4v_magic.core.errors import OptionError, did_you_mean
from glm4v_magic.core.option import Option
from glm4v_magic.core.options import check, of_settings
from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.notebook.next_steps import in_cell

if TYPE_CHECKING:
    from glm4v_magic.images import Limits

__all__ = ["PREFIX", "Glm4v", "Setting", "read"]

_log = logging.getLogger(__name__)

PREFIX = "GLM4V_"
"""Prefix of environment variables."""

BUILT_IN = "built in"
IPYTHON = "IPython's configuration"
CONFIG_MAGIC = "%config"

_SECTION = re.compile(
    rb"^[ \t]*\[{0,2}[ \t]*(?:tool[ \t]*\.[ \t]*)?([\"']?)glm4v_magic\1[ \t]*(?:[].=#]|\r?$)", re.M
)
"""Beginning of a line that may be meant as our section, as TOML or nearly so."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting for display: name, value, source and meaning."""

    name: str
    value: str
    source: str
    meaning: str


class _Demanding:
    """A trait that raises OptionError for an invalid value."""

    name: str

    def validate(self, owner: object, value: object) -> Any:
        """Return the value as it is kept; called by traitlets."""
        try:
            check(self.name, value, self.name)  # a setting, which has no dashes
        except OptionError as error:
            raise TraitError(in_cell(error)) from None
        return super().validate(owner, value)  # type: ignore[misc]  # the trait's


# `%config Glm4v` shows the names of these classes as the kinds of its values.


class Number(_Demanding, Float):
    """A number within the range of its option."""


class WholeNumber(_Demanding, Int):
    """A whole number within the range of its option."""


class Text(_Demanding, Unicode):
    """Any text."""

    def from_string(self, text: str) -> str:
        """Return the text unchanged; `Unicode` would strip quotes and expand ``~``."""
        return text


class YesNo(_Demanding, Bool):
    """True or false; environment variables may also use 1 or 0, on or off."""

    def from_string(self, text: str) -> bool | None:
        """Accept ``on`` and ``off``, too."""
        if text.lower() in ("on", "off"):
            return text.lower() == "on"
        value: bool | None = super().from_string(text)
        return value


_TRAITS: Mapping[str, type[_Demanding]] = {
    "int": WholeNumber,
    "float": Number,
    "str": Text,
    "bool": YesNo,
}


def _trait(option: Option) -> Any:
    """Return a setting as a trait."""
    kind: Any = _TRAITS[option.type]
    trait = kind(option.default, allow_none=option.allows_none, help=option.help)
    return trait.tag(config=True, unset=option.unset or "none")


class Glm4v(Configurable):
    """The settings. The class has the name that ``%config`` shows."""

    # In a class body, `locals` is the namespace of the class.
    locals().update({each.name: _trait(each) for each in of_settings()})

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self) -> None:
        super().__init__()
        self._sources = dict.fromkeys(self.names(), BUILT_IN)
        self._configured: dict[str, object] = {}  # of IPython's configuration, as it was taken

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all settings, in the order of the table."""
        return tuple(each.name for each in of_settings())

    def source(self, name: str) -> str:
        """Return where a value comes from."""
        return self._sources[name]

    def take(self, name: str, value: object, source: str, label: str) -> None:
        """Set a value.

        Args:
            name: name of the setting.
            value: value of its type.
            source: source of the value.
            label: name of the setting in that source, for messages.

        Raises:
            OptionError: if there is no such setting, or the value is invalid.
        """
        if name not in self._sources:
            raise OptionError(
                f"{label} is not a setting.",
                did_you_mean(name, self.names()) or f"There are {', '.join(self.names())}.",
            )
        check(name, value, label)
        setattr(self, name, value)
        self._sources[name] = source

    def configure(self, name: str, value: object) -> None:
        """Set a value of IPython's configuration; as `take`."""
        label = f"c.Glm4v.{name} in {IPYTHON}"
        self.take(name, _parsed(self, name, value), IPYTHON, label)
        self._configured[name] = value

    def update_config(self, config: Config) -> None:
        """Apply a change by ``%config``; called by IPython with its whole configuration.

        What cannot be set is told of and taken out of the configuration again, or it would be found
        there whenever the extension is loaded.
        """
        section = config.get(type(self).__name__, {})
        for name, value in list(section.items()):
            if name in self._configured and self._configured[name] == value:
                continue  # it was not this that was changed
            try:
                self.take(name, value, CONFIG_MAGIC, name)
            except OptionError as error:
                # Raised, it would be told by the root logger, which then tells all else, too.
                _log.error("%s", in_cell(error))
                del section[name]
                if name in self._configured:
                    section[name] = self._configured[name]
            else:
                self._configured[name] = value

    def table(self, name: str | None = None) -> list[Setting]:
        """Return all settings, or the one of this name.

        Raises:
            OptionError: if there is none.
        """
        if name is not None and name not in self._sources:
            raise OptionError(
                f"There is no setting {name}.",
                did_you_mean(name, self.names()) or f"There are {', '.join(self.names())}.",
            )
        return [self._row(each) for each in self.names() if name in (None, each)]

    def _row(self, name: str) -> Setting:
        value, trait = getattr(self, name), self.traits()[name]
        shown = trait.metadata["unset"] if value is None else _shown(value)
        return Setting(name, shown, self._sources[name], trait.help)

    @property
    def limits(self) -> Limits:
        """Limits on images."""
        from glm4v_magic.images import Limits

        return Limits(
            megapixels=self.megapixels,
            download_seconds=self.download_seconds,
            allow_private=self.allow_private,
        )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def read(
    configuration: Mapping[str, Any], environment: Mapping[str, str], folder: Path | None = None
) -> Glm4v:
    """Return the settings of all sources.

    Args:
        configuration: the section ``Glm4v`` of IPython's configuration.
        environment: variables by name. An empty one counts as not set.
        folder: where the search for a ``pyproject.toml`` begins; the current one by default.

    Raises:
        OptionError: for an unknown setting or an invalid value; it says where.
    """
    settings = Glm4v()
    for name, value in configuration.items():
        settings.configure(name, value)
    file, section = _project(folder)
    for name, value in section.items():
        settings.take(name, _from(file, name, value), str(file), f"{name} in {file}")
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and variable != API_KEY and text:
            name = variable.removeprefix(PREFIX).lower()
            value = _parsed(settings, name, DeferredConfigString(text))
            settings.take(name, value, variable, f"The environment variable {variable}")
    return settings


def _parsed(settings: Glm4v, name: str, value: object) -> object:
    """Convert text from a command line or the environment to the setting's type, if possible."""
    trait = settings.traits().get(name)
    if trait is None or not isinstance(value, DeferredConfigString):
        return value
    return value.get_value(trait)


def _from(file: Path, name: str, value: object) -> object:
    """Let ``model = "./checkpoint"`` mean the folder beside the file, wherever the notebook is."""
    if name == "model" and isinstance(value, str) and value.startswith(("./", "../")):
        return os.path.normpath(file.parent / value)
    return value


def _project(folder: Path | None) -> tuple[Path, Mapping[str, Any]]:
    """Return the nearest ``pyproject.toml`` and the section in it, if it has one."""
    try:
        start = Path.cwd() if folder is None else folder
        file = next(
            each / "pyproject.toml"
            for each in (start, *start.parents)
            if (each / "pyproject.toml").is_file()
        )
        content = file.read_bytes()
    except (OSError, StopIteration):  # there is none, it may not be read, the folder is gone
        return Path(), {}
    if _SECTION.search(content) is None:
        if not _is_utf8(content):  # its section may only not be seen
            _log.warning("%s is not UTF-8, so that nothing in it was read.", file)
        return file, {}
    import tomllib

    try:
        document = tomllib.loads(content.decode("utf-8"))
    except ValueError as error:  # not TOML, or not UTF-8
        raise OptionError(f"{file} cannot be read: {error}.") from None
    tools = document.get("tool", {})
    section = tools.get("glm4v_magic", {}) if isinstance(tools, dict) else {}
    if not isinstance(section, dict):
        raise OptionError(f"{file} cannot be read: tool.glm4v_magic is not a table.")
    return file, section


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
