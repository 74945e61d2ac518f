"""Constrained decoding: constraints as grammars, and the tokens that a grammar allows next.

llguidance does the work. It is an optional dependency: without it, a schema is only checked when
the answer is complete, and a regular expression is refused. Choices need no grammar; see
`choosing`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.errors import ConversationError, OptionError
from glm4v_magic.core.wording import printable
from glm4v_magic.imports import import_whole

__all__ = [
    "INSTALL",
    "MISSING",
    "Grammars",
    "Guide",
    "Tags",
    "is_available",
    "left_out",
    "matches",
    "not_in_schema",
    "require",
]

_log = logging.getLogger(__name__)

MISSING = "An answer of this form needs the package llguidance, which is not installed."
INSTALL = "Install it with: pip install llguidance"
_STRIPPED = r"([^\s\x1c-\x1f]((.|\n)*[^\s\x1c-\x1f])?)?"
"""Text without surrounding whitespace as Python defines it, like every answer."""
_LAYOUT = {"whitespace_flexible": True, "whitespace_pattern": r"( |\n[ \t]{0,32})?"}
"""JSON as models write it, compact, with spaces as of Python, or in indented lines.

A model that was trained on one of them writes nonsense in another. With free whitespace it could
write spaces forever.
"""
_MOST_COMPILED = 32
_LONGEST_FAULT = 200
_UNKNOWN_KEYWORDS = re.compile(r"Unimplemented keys: (\[.*\])")
_UNKNOWN_FORMAT = re.compile(r"Unknown format: (.+)")
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose value maps names, which are not keywords, to schemas."""
_OF_VALUES = ("const", "enum", "default", "examples")
"""Keywords whose value is JSON of any kind, not schemas."""
_BROKEN_ESCAPE = re.compile(r"(?<!\\)(\\\\)*\\\Z")
_UNSATISFIABLE = "Unsatisfiable schema: "
_IN_OUR_WORDS = (
    (r"fuel exhausted|too (?:big|complex|large)|too many expressions", "it is too large"),
    (r"anyOf is empty|schema is false", "it allows no value"),
    (r"look-?around", r"it uses look-around, \b, or a ^ or $ within it"),
)
"""Faults that llguidance words for its developers, and what they mean."""


def is_available() -> bool:
    """Tell whether llguidance is installed."""
    return importlib.util.find_spec("llguidance") is not None


def require(constraint: Constraint | None) -> None:
    """Raise OptionError unless a model in this process can follow the constraint.

    Raises:
        OptionError: if its grammar cannot be built, no text follows it, or llguidance is missing
            for a regular expression.
    """
    if constraint is None or constraint.choices:
        return
    if is_available():
        import_whole("llguidance")  # some seconds, the first time
        _grammar(constraint)
    elif constraint.regex:
        raise OptionError(MISSING, INSTALL)


def matches(regex: str, text: str) -> bool:
    """Tell whether a regular expression matches all of a text.

    Raises:
        OptionError: if it is not a regular expression.
    """
    if is_available():
        matcher = _matcher(_bytes_alone(), _grammar(Constraint(regex=regex)))
        ids = list(text.encode())
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())
    try:
        return re.fullmatch(regex, text) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise _unusable("regex", str(error)) from None


@cache
def _bytes_alone() -> Any:
    """Return a tokenizer with a token for each byte."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _matcher(tokenizer: Any, grammar: str) -> Any:
    from llguidance import LLMatcher, LLParserLimits

    return LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))


@lru_cache(_MOST_COMPILED)
def _grammar(constraint: Constraint) -> str:
    """Return the grammar of a constraint.

    Keywords of a schema that llguidance does not know are left out; the complete answer is checked
    against them.

    Raises:
        OptionError: if it cannot be built, or no text follows it.
    """
    what = "regex" if constraint.regex else "schema"
    fault = ""
    for options in ({}, {"lenient": True}) if constraint.schema else ({},):
        grammar = _written(constraint, options)
        matcher = _matcher(_bytes_alone(), grammar)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if not matcher.is_stopped() or matcher.is_accepting():
            return grammar
        fault = matcher.get_error()
    if not fault or fault.startswith("NoExtension"):
        raise OptionError(f"No answer follows the {what}.")
    if fault.startswith(_UNSATISFIABLE):
        why = _why(fault.removeprefix(_UNSATISFIABLE))
        raise OptionError(f"No answer follows the {what}: {why}.")
    elsewhere = re.match(r"(Resource|Pointer) '(.*)' (?:is not present|does not exist)", fault)
    if elsewhere is not None:
        raise not_in_schema(elsewhere[2], is_pointer=elsewhere[1] == "Pointer")
    raise _unusable(what, fault)


@lru_cache(_MOST_COMPILED)
def left_out(constraint: Constraint) -> tuple[str, ...]:
    """Return what a schema says that is not enforced while the answer is written.

    Args:
        constraint: a constraint that `require` takes.

    Returns:
        Keywords, as ``format: NAME`` where a format is unknown; empty for other constraints.
    """
    if not constraint.schema:
        return ()
    schema = json.loads(constraint.schema)
    keywords: set[str] = set()
    formats: set[str] = set()
    options: dict[str, Any] = {}
    while True:
        named = len(keywords) + len(formats)
        _drop(schema, keywords, formats)
        rest = Constraint(schema=json.dumps(schema))
        fault = _matcher(_bytes_alone(), _written(rest, options)).get_error()
        unknown, name = _UNKNOWN_KEYWORDS.match(fault), _UNKNOWN_FORMAT.match(fault)
        if unknown is not None:
            keywords.update(json.loads(unknown[1]))
        elif name is not None:
            formats.add(name[1].strip())
        elif "coerce_one_of" in fault and not options:
            options = {"coerce_one_of": True}
            continue
        # Nothing new is named if it is where no schema should be, such as in an enum.
        if named == len(keywords) + len(formats):
            either = ("oneOf",) if options else ()
            named_keywords = {*keywords, *either} - {"$dynamicAnchor"}  # which demands nothing
            return (*sorted(named_keywords), *(f"format: {each}" for each in sorted(formats)))


def _drop(schema: Any, keywords: Collection[str], formats: Collection[str]) -> None:
    """Delete keywords, formats and what allows anything from a schema and those within it."""
    for each in list(_schemas(schema)):
        for key in each.keys() & keywords:
            del each[key]
        if each.get("format") in sorted(formats):
            del each["format"]
        if each.get("uniqueItems") is False:
            del each["uniqueItems"]


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and those within it."""
    if isinstance(schema, list):
        for each in schema:
            yield from _schemas(each)
    elif isinstance(schema, dict):
        yield schema
        for keyword, value in schema.items():
            if keyword in _OF_NAMES and isinstance(value, dict):
                yield from _schemas(list(value.values()))
            elif keyword not in _OF_VALUES:
                yield from _schemas(value)


def _written(constraint: Constraint, options: dict[str, Any]) -> str:
    from llguidance import LLMatcher, regex_to_lark

    if constraint.regex:
        if _BROKEN_ESCAPE.search(constraint.regex):  # it would escape what follows in the grammar
            raise _unusable("regex", "it ends with a lone \\, where \\\\ matches one")
        pattern = regex_to_lark(constraint.regex, "")
        return LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: /{pattern}/ & /{_STRIPPED}/")
    schema = json.loads(constraint.schema)
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides={**_LAYOUT, **options})
    except ValueError as error:  # half a character in a text, for example
        raise _unusable("schema", str(error)) from None


def not_in_schema(reference: str, *, is_pointer: bool) -> OptionError:
    """Return the error about a reference of a schema that cannot be resolved.

    Args:
        reference: the reference; of one within the schema, what follows its ``#``.
        is_pointer: whether it is one within the schema.
    """
    written = f"#{reference}" if is_pointer else reference
    return OptionError(
        f"The schema refers to {written!r}, which is not in it.", "Put it under $defs."
    )


def _unusable(what: str, fault: str) -> OptionError:
    """Return the error about a schema or regex that cannot be followed."""
    return OptionError(f"The {what} cannot be followed: {_why(fault)}.")


def _why(fault: str) -> str:
    """Return why a schema or regex cannot be followed: our words, or the line of `fault`."""
    for pattern, words in _IN_OUR_WORDS:
        if re.search(pattern, fault):
            return words
    found = re.search(r"^error: (.+)", fault, re.MULTILINE) or re.search(
        r"\(in regex\): (.+)", fault
    )
    why = " ".join((found[1] if found else fault.partition("\n")[0]).split())
    if len(why) > _LONGEST_FAULT:
        why = f"{why[:_LONGEST_FAULT]}..."
    return why.rstrip(".")


class Grammars:
    """Compiled grammars for one tokenizer; the latest are kept.

    Args:
        tokenizer: fast tokenizer of the model.
        width: number of logits, at least the number of tokens.
        ends: ids that end a turn.
    """

    def __init__(self, tokenizer: Any, width: int, ends: Sequence[int]) -> None:
        self._tokenizer, self._width, self._ends = tokenizer, width, sorted(ends)
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()
        self._told: set[tuple[str, ...]] = set()

    @cached_property
    def _tokens(self) -> Any:
        import_whole("llguidance.hf")
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, n_vocab=self._width, eos_token=self._ends)

    @cached_property
    def _pieces(self) -> frozenset[bytes]:
        """The tokens' texts in UTF-8."""
        tokens = self._tokens
        ordinary = (each for each in range(self._width) if not tokens.is_special_token(each))
        return frozenset(tokens.decode_bytes([each]) for each in ordinary) - {b""}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._pieces))

    def _tell_left_out(self, constraint: Constraint) -> None:
        """Log once what a schema says that is not enforced."""
        keywords = left_out(constraint)
        if keywords and keywords not in self._told:
            self._told.add(keywords)
            formats = [each for each in keywords if each.startswith("format: ")]
            others = [each for each in keywords if each not in formats]
            if others:
                _log.warning(
                    "The model does not keep to %s of the schema while it writes; a session checks "
                    "the complete answer for that.",
                    printable(", ".join(others)),
                )
            if formats:
                _log.warning(
                    "The model does not keep to %s of the schema, and nobody checks it.",
                    printable(", ".join(formats)),
                )

    def _fewest(self, text: bytes) -> int:
        """Return the fewest tokens that write a text."""
        longest = self._longest
        fewest = [0]
        for end in range(1, len(text) + 1):
            starts = range(max(0, end - longest), end)
            fewest.append(
                min((fewest[at] for at in starts if text[at:end] in self._pieces), default=0) + 1
            )
        return fewest[-1]

    def guide(
        self,
        constraint: Constraint,
        begun: str = "",
        opening: Sequence[int] = (),
        thinking: Tags | None = None,
        limit: int | None = None,
    ) -> Guide | None:
        """Return a guide for a row; ``None`` if this constraint is only checked afterwards.

        Args:
            constraint: a schema or a regular expression.
            begun: text of the answer that exists already.
            opening: ids that the model writes before its answer.
            thinking: tags of thinking that may come before the answer.
            limit: maximum number of tokens, the end of the turn included.

        Raises:
            OptionError: as `require`, and if every text of this form begins in the same way and
                that alone takes more than `limit`.
            ConversationError: if no match of the regular expression begins with `begun`.
        """
        require(constraint)
        if not is_available():
            return None
        matcher = self._compiled.pop(constraint, None)
        if matcher is None:
            matcher = _matcher(self._tokens, _grammar(constraint))
            self._tell_left_out(constraint)
        self._compiled[constraint] = matcher
        if len(self._compiled) > _MOST_COMPILED:
            self._compiled.popitem(last=False)
        matcher = matcher.deep_copy()
        ids = self._tokens.tokenize_str(begun)
        if matcher.try_consume_tokens(ids) < len(ids):
            if constraint.schema:
                return None  # prose, in which JSON may follow
            raise ConversationError(
                "No match of the regex begins with the answer so far.", "Ask again instead."
            )
        forced = matcher.compute_ff_bytes() if limit is not None else b""
        least = self._fewest(forced) + 1
        needed = least + (len(opening) if thinking is None else thinking.is_open)
        if limit is not None and needed > limit:
            raise OptionError(
                f"An answer of this form takes at least {needed} tokens with its end, but the "
                f"answer may have {limit}."
            )
        return Guide(matcher, opening, self._ends, self._width, least, thinking)


@dataclass(frozen=True, slots=True)
class Tags:
    """Tags around the thinking of a row.

    Attributes:
        opening: id of the opening tag.
        closing: id of the closing tag.
        is_open: whether the prompt ends within the thinking.
        before: ids that the model may write before the opening tag, such as a newline.
    """

    opening: int
    closing: int
    is_open: bool
    before: Sequence[int] = ()

    @property
    def unwritten(self) -> tuple[int, ...]:
        """Tags that the prompt does not have."""
        return (self.closing,) if self.is_open else (self.opening, self.closing)


class Guide:
    """The tokens that may come next in one row.

    A row that may think either begins its answer at once or opens its thinking, and begins the
    answer when that is closed. Within the thinking everything is allowed.

    Args:
        matcher: llguidance's matcher, at the beginning of the row.
        opening: ids that come first, whatever the grammar.
        ends: ids that end the turn: allowed where the grammar can end.
        width: number of logits.
        least: fewest tokens of the answer, its end included.
        thinking: tags of thinking that may come first; ``None`` for none.

    Attributes:
        least: as given.
    """

    def __init__(
        self,
        matcher: Any,
        opening: Sequence[int],
        ends: Sequence[int],
        width: int,
        least: int = 1,
        thinking: Tags | None = None,
    ) -> None:
        self._matcher, self._opening = matcher, list(opening)
        self._ends, self._width, self.least = list(ends), width, least
        self._thinking = thinking
        self._is_inside = thinking is not None and thinking.is_open
        self._before = list(thinking.before) if thinking is not None else []

    def allowed(self) -> NDArray[np.bool_]:
        """Return whether each id may come next, (vocabulary,)."""
        if self._is_inside:
            return np.ones(self._width, dtype=np.bool_)
        allowed = np.zeros(self._width, dtype=np.bool_)
        if self._opening:
            allowed[self._opening[0]] = True
            return allowed
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed |= np.unpackbits(bits, count=self._width, bitorder="little").astype(np.bool_)
        allowed[self._ends] = self._matcher.is_accepting()
        if self._thinking is not None:
            allowed[[self._thinking.opening, *self._before[:1]]] = True
        if self._matcher.is_error() or not allowed.any():
            raise _unusable("form", self._matcher.get_error() or "it leads nowhere")
        return allowed

    def take(self, token: int) -> None:
        """Advance by the id that was chosen."""
        thinking = self._thinking
        if self._is_inside and thinking is not None:
            if token == thinking.closing:
                self._is_inside, self._thinking = False, None
        elif thinking is not None and token == thinking.opening:
            self._is_inside = True
        elif thinking is not None and self._before[:1] == [token]:
            del self._before[0]
        elif self._opening:
            del self._opening[0]
        elif token not in self._ends:
            self._thinking = None
            self._matcher.consume_token(token)
