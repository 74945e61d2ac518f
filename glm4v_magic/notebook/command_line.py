"""Parser of a magic's first line: words, options and the rest.

On top of IPython's `magic_arguments`: options may stand anywhere, are never abbreviated, a
misspelt one gets a close match, and quotes around a word are removed here and nowhere else.
"""

from __future__ import annotations

import builtins
import os
import re
from argparse import SUPPRESS, Action, Namespace
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic_arguments import (
    ArgDecorator,
    MagicArgumentParser,
    argument,
    kwds,
    magic_arguments,
)

from glm4v_magic.core.errors import OptionError, PromptError, did_you_mean
from glm4v_magic.core.option import Option
from glm4v_magic.core.options import OPTIONS, of_command
from glm4v_magic.core.typed_options import argument_of, flag_of, flags_of, value_text
from glm4v_magic.notebook.own_options import OWN, own_of_command

__all__ = [
    "AGAIN_OPTIONS",
    "ANSWER_OPTIONS",
    "DEBUG",
    "Quoted",
    "asks_for_help",
    "begun",
    "filled",
    "from_table",
    "is_room_for_word",
    "options_in",
    "parse",
    "split",
    "takes",
]

Function = TypeVar("Function", bound=Callable[..., Any])


def from_table(command: str, **changes: Mapping[str, Any]) -> tuple[ArgDecorator, ...]:
    """Return the options that the tables give to a command, the notebook's own first.

    Args:
        command: as in `core.option.Who`.
        changes: option -> arguments of `argument` that differ for this command.
    """
    mine = (*own_of_command(command), *of_command(command))
    return tuple(_argument(each, changes.get(each.name, {})) for each in mine)


def _argument(option: Option, changes: Mapping[str, Any]) -> ArgDecorator:
    unless = "given or set" if option.who.setting else "given"
    return argument(*flags_of(option), **{**argument_of(option, unless), **changes})


(DEBUG,) = from_table("every")

ANSWER_OPTIONS = (*from_table("ask"), DEBUG)
"""Options of a question."""

AGAIN_OPTIONS = (*from_table("retry"), DEBUG)
"""Options of asking again: retry and continue."""


class Quoted(str):
    """A word that was quoted, without the quotes."""

    __slots__ = ()


def takes(
    name: str, *arguments: ArgDecorator, usage: str | None = None
) -> Callable[[Function], Function]:
    """Give a function the arguments of a magic, in this order, and a docstring with its help.

    Args:
        name: what the user types, without the percent sign.
        arguments: made with `IPython.core.magic_arguments.argument`.
        usage: first line of the help, after the percent sign; ``None`` lists all arguments.
    """

    def decorate(function: Function) -> Function:
        for option in reversed(arguments):
            function = option(function)
        if usage is not None:
            function = kwds(usage=usage.replace("%", "%%"))(function)
        function = magic_arguments(name)(function)
        # An abbreviation such as --temp would change its meaning with the next option added.
        _parser(function).allow_abbrev = False
        return function

    return decorate


def split(line: str) -> list[str]:
    """Split at whitespace outside of quotes, and leave out a ``# comment`` at the end.

    Quotes in brackets, as in ``df["two words"]``, and ``{{expressions}}`` belong to their word.
    Backslashes stay, because Windows paths have them.

    Raises:
        OptionError: if a quote is not closed.
    """
    words: list[str] = []
    for found in _WORD.finditer(line):
        if found["comment"] is not None:
            break
        if found["open"] is not None:
            raise OptionError(
                f"A quote is not closed in: {line.strip()}",
                'A name that holds an apostrophe goes in double quotes: "it\'s.png".',
            )
        quoted = found["quoted"]
        words.append(found["plain"] if quoted is None else Quoted(quoted[1:-1]))
    return words


def begun(line: str) -> tuple[list[str], str] | None:
    """Split a line that is still being typed: the words before its last one, and that as it stands.

    The last word keeps its quotes; after a space it is empty. ``None`` in a comment.
    """
    words: list[str] = []
    for found in _WORD.finditer(line):
        if found["comment"] is not None:
            return None
        if found["open"] is not None or found.end() == len(line):
            return words, line[found.start() :]
        quoted = found["quoted"]
        words.append(found["plain"] if quoted is None else Quoted(quoted[1:-1]))
    return words, ""


# Atomic, so that a data: URI of megabytes takes no time. A word such as #1.png is not a comment.
_WORD = re.compile(
    r"""
      (?P<comment> \#+ (?!\S) )
    | (?P<quoted> "[^"]*" | '[^']*' )
    | (?P<open> ["'] )
    | (?P<plain> (?:
          [^\s{"']++
        | \{\{ .*? \}\}+
        | (?<= [\[(,] ) (?: "[^"]*" | '[^']*' )
        | \S
      )++ )
    """,
    re.VERBOSE | re.DOTALL,
)


def asks_for_help(words: list[str]) -> bool:
    """Tell whether ``-h`` or ``--help`` is among `words`, not in quotes."""
    return any(word in ("-h", "--help") and not isinstance(word, Quoted) for word in words)


def parse(function: Callable[..., Any], words: list[str]) -> Namespace:
    """Parse `words` with the ``@argument``s of `function`.

    Raises:
        OptionError: for an unknown option, or a value of the wrong kind.
    """
    parser = _parser(function)
    _refuse_dashes(parser, words)
    _refuse_twice(parser, words)
    try:
        # The intermixed form lets images stand on both sides of an option.
        arguments: Namespace
        arguments, rest = parser.parse_known_intermixed_args(
            _joined(parser, words), _with_defaults(parser)
        )
    except UsageError as error:
        raise OptionError(_in_our_words(parser, str(error)), _help_of(parser)) from None
    except OptionError as error:
        error.what = f"{error.what.rstrip('.')}."
        error.hint = f"{error.hint} {_help_of(parser)}".lstrip()
        raise
    for word in rest:
        name = word.partition("=")[0]
        if name.startswith("-"):
            raise _unknown(parser, name)
    if rest and any(word.startswith("{") for word in words):
        raise OptionError(
            f"%{parser.prog} does not take {' '.join(rest)!r}.",
            "A device map on a line goes in quotes: --map '{\"\": 0}'",
        )
    if rest:
        raise OptionError(f"%{parser.prog} does not take {' '.join(rest)!r}.", _help_of(parser))
    return arguments


def _with_defaults(parser: Any) -> Namespace:
    """Return a namespace with the defaults of all options.

    argparse sets those that it finds no attribute for, and nnsight 0.8 gives every object an
    attribute ``save``.
    """
    options = [each for each in parser._actions if each.option_strings and each.dest != "help"]
    return Namespace(**{each.dest: each.default for each in options if each.default != SUPPRESS})


def _unknown(parser: Any, name: str) -> OptionError:
    """Return the error about an option that a command does not have."""
    everything = (*OPTIONS.values(), *OWN.values())
    others = [each for each in everything if name in flags_of(each)]
    if magics := _magics(others):
        hint = f"It is one of {magics}."
        if parser.prog.endswith(_AGAIN) and name == "--chat":
            hint = f"The chat is named without an option: %{parser.prog} NAME."
        elif parser.prog.endswith(_AGAIN) and magics == _CELL and others[0].name in OPTIONS:
            hint = f"Question and images stay as they were; to change them, ask with {magics}."
        return OptionError(f"{_typed(parser.prog)} has no option {name}.", hint)
    known = [option for option in parser._option_string_actions if option[:2] == "--"]
    return OptionError(
        f"There is no option {name}.",
        # The dashes are the same in all.
        did_you_mean(name, known, cutoff=0.7) or f"There are {', '.join(sorted(known))}.",
    )


_AGAIN = (" retry", " continue")
_CELL = "%%glm4v"


def _magics(options: Iterable[Option]) -> str:
    """Name the commands that have one of the options; of those that ask, the cell magic alone."""
    commands = [each for option in options for each in option.who.commands]
    of_cell = ("cell", "ask", "preview", "retry", "continue") if "cell" in commands else ()
    named = [_CELL] if of_cell else []
    named += [f"%glm4v {each}" for each in commands if each not in (*of_cell, "every")]
    return ", ".join(named)


def _typed(prog: str) -> str:
    """Return a magic as it is typed: that of a line, or of a cell."""
    return f"%{prog}" if " " in prog else f"%%{prog}"


_DASHES = re.compile(r"[-\u2010-\u2015\u2212]*[\u2010-\u2015\u2212]-*(?=\w)")
"""Dashes that text editors put in place of an option's hyphens."""


def _refuse_dashes(parser: MagicArgumentParser, words: list[str]) -> None:
    for word in words:
        name = _DASHES.sub("-" if len(_DASHES.sub("", word)) == 1 else "--", word, count=1)
        is_option = name.partition("=")[0] in parser._option_string_actions
        if is_option and name != word and not isinstance(word, Quoted):
            raise OptionError(f"{word} begins with a dash.", f"Options begin with hyphens: {name}.")


_COMMAS = "its values go with commas between"
_ADDED_TO = {
    "by": "one column divides the rows",
    "choices": _COMMAS,
    "compare": _COMMAS,
    "evaluate": "one column has the expected answers",
    "lora": "one adapter is merged",
    "max_memory": _COMMAS,
    "over": "a list has the items of several",
    "pin": _COMMAS,
}
"""Options that people repeat to add a value, as in other programs, and how it is done; others they
repeat to correct it."""


def _refuse_twice(parser: MagicArgumentParser, words: list[str]) -> None:
    """Raise OptionError if one of `_ADDED_TO` is given twice: argparse would take the last."""
    flags = [word.partition("=")[0] for word in words if not isinstance(word, Quoted)]
    for name, way in _ADDED_TO.items():
        flag = flag_of(name)
        if flag in parser._option_string_actions and flags.count(flag) > 1:
            raise OptionError(f"{flag} is given twice.", f"Give it once: {way}.")


_OF_AN_OPTION = re.compile(r"argument (?P<flags>\S+): (?P<fault>.*)", re.DOTALL)
_INVALID = re.compile(
    r"invalid \w+(?: value)?: (?P<value>'.*?'|\".*?\")(?: \(choose .*)?", re.DOTALL
)


def _in_our_words(parser: MagicArgumentParser, said: str) -> str:
    """Return what is wrong with a line, given what argparse says."""
    required = said.partition("arguments are required: ")[2]
    if required:
        return f"%{parser.prog} needs {required}."
    found = _OF_AN_OPTION.fullmatch(said)
    if found is None:
        return f"{said[:1].upper()}{said[1:]}."
    flag = found["flags"].split("/")[-1]
    action = parser._option_string_actions.get(flag)
    if action is None:
        return f"{flag}: {found['fault']}."
    if found["fault"].startswith("expected"):
        return f"{flag} needs a value: {flag} {_value_of(action)}."
    if found["fault"].startswith("ignored"):
        return f"{flag} takes no value."
    invalid = _INVALID.fullmatch(found["fault"])
    if invalid is None:
        return f"{flag}: {found['fault']}."
    if action.choices:
        *others, last = map(str, action.choices)
        return f"{flag} is {invalid['value']}, but must be {', '.join(others)} or {last}."
    return f"{flag} is {invalid['value']}, but must be a number."


def _value_of(action: Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()


def _help_of(parser: MagicArgumentParser) -> str:
    magic, *command = parser.prog.split()
    return f"See %{' '.join([magic, 'help', *command])}."


def _joined(parser: MagicArgumentParser, words: list[str]) -> list[str]:
    """Join an option with a value that argparse would mistake for another option.

    Such values are numbers, as in ``--crop -1,0,5,5``, so that the message is about the number, and
    everything in quotes: ``--system "- brief"``.
    """
    joined: list[str] = []
    for word in words:
        is_value = re.match(r"-[\d.]", word) is not None or isinstance(word, Quoted)
        takes_one = bool(joined) and _takes_a_value(parser, joined[-1])
        if takes_one and is_value and word.startswith("-") and not isinstance(joined[-1], Quoted):
            joined[-1] = f"{joined[-1]}={word}" if joined[-1][:2] == "--" else joined[-1] + word
        else:
            joined.append(word)
    return joined


def _takes_a_value(parser: MagicArgumentParser, word: str) -> bool:
    action = parser._option_string_actions.get(word)
    return action is not None and action.nargs is None and not isinstance(word, Quoted)


def filled(
    function: Callable[..., Any], words: list[str], names: Mapping[str, object]
) -> list[str]:
    """Return words with each ``{{expression}}`` in them replaced, unless ``--raw`` is among them.

    A word that is nothing but an expression becomes its value if that is a text, path or number,
    or what the option before it takes in Python, and else the expression itself, such as the name
    of a variable that holds an image. In quotes only values of options are replaced: other words
    in quotes are questions, whose expressions come later. An option whose value is ``None`` is not
    given.

    Raises:
        OptionError: if an option does not take the value.
        PromptError: as `calls.prompt.expand`.
    """
    if not any("{{" in word for word in words) or "--raw" in words:
        return words
    parser, done = _parser(function), [*words]
    left_out: set[int] = set()
    for place, word in enumerate(words):
        before = words[place - 1] if place > 0 else ""
        of_option = _takes_a_value(parser, before)
        if "{{" in word and (of_option or not isinstance(word, Quoted)):
            flag, equals, value = word.partition("=")
            if equals and _takes_a_value(parser, flag) and not isinstance(word, Quoted):
                text, start = _filled(value, names, _option_at(parser, flag)), f"{flag}="
                left_out |= {place} if text is None else set()
            else:
                start, option = "", _option_at(parser, before) if of_option else None
                text = _filled(word, names, option)
                left_out |= {place - 1, place} if text is None else set()
            done[place] = type(word)(f"{start}{text}")
    return [word for place, word in enumerate(done) if place not in left_out]


def _option_at(parser: MagicArgumentParser, flag: str) -> Option | None:
    return OPTIONS.get(parser._option_string_actions[flag].dest)


_NEVER_NONE = frozenset(("over", "by", "evaluate", "compare", "save"))
"""Options without which something else is done; ``None`` is not taken for one that is left out."""

_CONSTANTS = {"None": None, "True": True, "False": False}


def _filled(word: str, names: Mapping[str, object], option: Option | None) -> str | None:
    """Return a word with what its expressions are; ``None`` for an option that is not given."""
    from glm4v_magic.calls.prompt import expand
    from glm4v_magic.images.words import is_lookup, looked_up

    inner = word[2:-2].strip()
    is_named = option is None or inner.isidentifier()
    known = names if is_named else {**vars(builtins), **names}  # such as dict(sizes)
    is_whole = word.startswith("{{") and word.endswith("}}") and "{{" not in inner
    try:
        value: Any
        if is_whole and is_lookup(inner, known):
            value = looked_up(inner, known)
        else:
            expanded = expand(word, names)
            if option is None or not is_whole or expanded not in _CONSTANTS:
                return expanded
            value = _CONSTANTS[expanded]
    except PromptError as error:
        error.what = error.what.replace("in line 1 of the prompt", "on the first line")
        raise
    if option is not None:
        if value is None and option.allows_none and option.name not in _NEVER_NONE:
            return None
        if (text := value_text(option, value)) is not None:
            return text
    return str(value) if isinstance(value, str | int | float | os.PathLike) else inner


def options_in(arguments: Iterable[ArgDecorator]) -> dict[str, Action]:
    """Return the options among arguments that `takes` can be given, by every name they have."""
    return dict(_parser_of(arguments)._option_string_actions)


def is_room_for_word(arguments: Iterable[ArgDecorator], words: Iterable[str]) -> bool:
    """Tell whether one more word that is no option can follow `words`."""
    parser = _parser_of(arguments)
    places = [each for each in parser._actions if not each.option_strings]
    if any(each.nargs == "*" for each in places):
        return True
    taken, before = 0, ""
    for word in words:
        is_option = word.startswith("-") and not isinstance(word, Quoted)
        if not is_option and not _takes_a_value(parser, before):
            taken += 1
        before = word
    return taken < len(places)


def _parser_of(arguments: Iterable[ArgDecorator]) -> MagicArgumentParser:
    parser = MagicArgumentParser()
    for each in arguments:
        each.add_to_parser(parser, None)
    return parser


def _parser(function: Callable[..., Any]) -> MagicArgumentParser:
    parser: MagicArgumentParser = getattr(function, "parser")  # noqa: B009  set by magic_arguments
    return parser
