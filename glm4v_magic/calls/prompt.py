r"""Expansion of ``{{expression}}`` in a prompt to the text of its value.

    animals = ["cat", "owl"]

    How many {{animals[0]}}s are there? Answer as JSON: {"count": n}

asks "How many cats are there? Answer as JSON: {"count": n}". Single braces, ``$x``, JSON and LaTeX
stay as they are. Two opening braces that are not an expression are written ``\{{``. Everything
between ``{{`` and the ``}}`` that belongs to it is one Python expression, dictionaries, sets and
strings with braces included; its value goes through `str` and is not expanded again.
"""

from __future__ import annotations

import ast
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType

from glm4v_magic.core.errors import PromptError, did_you_mean, reason
from glm4v_magic.outside import SHUT, is_endless, is_shut, listed_names

__all__ = ["expand", "names_in", "read_prompt", "require_string", "require_text"]

_OPENING = re.compile(r"\\?\{\{")
_LITERAL = r"For literal braces write \{{."
# Up to the next character that decides where an expression ends: a string is skipped as a whole.
_STRING_OR_BRACE = re.compile(
    r"""
      (?P<string> \"{3} (?:\\.|[^\\])*? \"{3}  |  '{3} (?:\\.|[^\\])*? '{3}
                | " (?:\\.|[^"\\\n])* "        |  ' (?:\\.|[^'\\\n])* ' )
    | (?P<brace> [{}] )
    | (?P<open_string> ["'] )
    """,
    re.VERBOSE | re.DOTALL,
)
# Control and format characters and separators; alone they are not a question.
_BLANK = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})


def expand(text: str, namespace: Mapping[str, object]) -> str:
    r"""Return `text` with each ``{{expression}}`` replaced by its value, and ``\{{`` by ``{{``.

    Args:
        text: prompt as the user wrote it.
        namespace: names that expressions may use, besides Python's builtins.

    Raises:
        PromptError: if an expression is not closed, is empty, is not Python, uses an unknown name
            or fails. The message names the expression and its line in `text`.
    """
    names = dict(namespace)  # eval adds __builtins__ to what it is given
    return "".join(
        piece if line is None else _value(piece, line, names) for piece, line in _pieces(text)
    )


def names_in(text: str) -> frozenset[str]:
    """Return the names that the expressions of a prompt use; nothing is evaluated.

    Raises:
        PromptError: if an expression is not closed, is empty or is not Python.
    """
    used: set[str] = set()
    for piece, line in _pieces(text):
        if line is not None:
            used |= _compiled(piece, _where_is(piece, line))[1]
    return frozenset(used)


def _pieces(text: str) -> Iterator[tuple[str, int | None]]:
    """Split a prompt into text, and expressions with their line numbers."""
    position = 0
    while opening := _OPENING.search(text, position):
        yield text[position : opening.start()], None
        if opening[0].startswith("\\"):
            yield "{{", None
            position = opening.end()
            continue
        line = text.count("\n", 0, opening.start()) + 1
        end = _end_of_expression(text, opening.end())
        if end is None:
            raise _not_closed(text[opening.start() :], line)
        yield text[opening.end() : end].strip(), line
        position = end + 2
    yield text[position:], None


def require_string(text: object) -> str:
    """Return `text`.

    Raises:
        PromptError: unless it is a string.
    """
    if not isinstance(text, str):
        raise PromptError(f"The prompt is text, not of type {type(text).__name__}.")
    return text


def require_text(text: object) -> str:
    """Return `text` without the whitespace around it.

    Raises:
        PromptError: if it is not a string, nothing visible is left, or it is not valid Unicode.
    """
    text = require_string(text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The prompt holds half a character, {text[error.start]!a}.",
            'Replace such halves: text.encode(errors="replace").decode().',
        ) from None
    if all(unicodedata.category(character) in _BLANK for character in text):
        raise PromptError("The prompt is empty.", "Write what you want to know about the image.")
    return text.strip()


def read_prompt(path: str) -> str:
    """Return the prompt in a text file, UTF-8, ``~`` expanded.

    Raises:
        PromptError: if there is no such file, or it is not text.
    """
    file = Path(os.path.expanduser(path))  # noqa: PTH111  Path's own fails on ~nobody
    if is_shut(file):
        raise PromptError(f"The prompt file {path} cannot be read: permission denied.", SHUT)
    if not os.path.lexists(file):
        meant = did_you_mean(file.name, listed_names(file.parent))
        raise PromptError(f"There is no prompt file {path}.", meant)
    if is_endless(file):
        raise PromptError(f"The prompt file {path} cannot be read: it is a device or a pipe.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise PromptError(f"The prompt file {path} is not text in UTF-8.") from None
    except (OSError, ValueError) as error:  # a folder, a permission, a null character
        raise PromptError(f"The prompt file {path} cannot be read: {reason(error)}.") from None


def _end_of_expression(text: str, start: int) -> int | None:
    """Return the index of the ``}}`` that closes an expression from `start`, if any."""
    depth = 0
    position = start
    while found := _STRING_OR_BRACE.search(text, position):
        position = found.end()
        if found["open_string"]:
            # Not Python, however long it is: it ends where a reader would expect.
            end = text.find("}}", position)
            return None if end < 0 else end
        if found["brace"] == "{":
            depth += 1
        elif found["brace"] == "}" and depth:
            depth -= 1
        elif found["brace"] == "}" and text.startswith("}}", found.start()):
            return found.start()
    return None


def _value(expression: str, line: int, names: dict[str, object]) -> str:
    """Evaluate `expression` and return the text of its value."""
    where = _where_is(expression, line)
    code, used = _compiled(expression, where)
    try:
        # The user's own expression, in the user's own kernel, as in any cell.
        return str(eval(code, names))  # noqa: S307
    except NameError as error:
        if error.name not in used:
            raise PromptError(f"{where} failed: {reason(error)}") from error
        raise PromptError(
            f"{where} uses {error.name}, which is not defined.",
            did_you_mean(error.name, (name for name in names if not name.startswith("_")))
            or f"Define {error.name} first. {_LITERAL}",
        ) from None
    except Exception as error:
        raise PromptError(f"{where} failed: {reason(error)}") from error


def _compiled(expression: str, where: str) -> tuple[CodeType, frozenset[str]]:
    """Compile `expression`; returns its code and the names that it takes from outside."""
    if not expression:
        raise PromptError(f"{where} is empty.", f"Write an expression in it. {_LITERAL}")
    try:
        tree = ast.parse(expression, mode="eval")
        code = compile(tree, "<prompt>", "eval")
    except SyntaxError as error:
        raise PromptError(f"{where} is not a Python expression: {error.msg}.", _LITERAL) from None
    except (ValueError, MemoryError, RecursionError) as error:
        # A null character, a lone surrogate, or nesting deeper than the parser goes.
        raise PromptError(
            f"{where} is not a Python expression: {reason(error)}", _LITERAL
        ) from None
    return code, frozenset(_free(tree))


def _free(tree: ast.AST) -> Iterator[str]:
    """Yield the names that an expression takes from outside, not those of its own variables."""
    waiting: list[tuple[ast.AST, frozenset[str]]] = [(tree, frozenset())]
    while waiting:
        node, bound = waiting.pop()
        if isinstance(node, ast.Name):
            if node.id not in bound:
                yield node.id
        elif isinstance(node, ast.Lambda):
            own = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
            waiting += [(node.args, bound), (node.body, bound | own)]
        elif isinstance(node, _COMPREHENSIONS):
            for part in node.generators:
                waiting.append((part.iter, bound))
                bound |= {each.id for each in ast.walk(part.target) if isinstance(each, ast.Name)}
                waiting += [(each, bound) for each in (part.target, *part.ifs)]
            values = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
            waiting += [(each, bound) for each in values]
        elif isinstance(node, ast.NamedExpr):
            waiting.append((node.value, bound))
        else:
            waiting += [(each, bound) for each in ast.iter_child_nodes(node)]


_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)


def _not_closed(rest: str, line: int) -> PromptError:
    beginning = rest.partition("\n")[0]
    return PromptError(f"{_where(beginning, line)} is not closed by }}}}.", _LITERAL)


def _where_is(expression: str, line: int) -> str:
    return _where(f"{{{{{expression}}}}}", line)


def _where(expression: str, line: int) -> str:
    shown = " ".join(expression.split())
    if len(shown) > 80:
        shown = f"{shown[:77]}..."
    return f"{shown} in line {line} of the prompt"
