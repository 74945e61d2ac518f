"""The page of all messages, for whoever searches for the one on the screen.

mkdocs calls `on_files`. The messages are read from the code: every error that is made with a text,
the changing parts of it left open, and what to do next as a cell says it.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from glm4v_magic.core import errors
from glm4v_magic.core.remarks import COMMON, remark, worded
from glm4v_magic.notebook.next_steps import CELL

OF_OTHERS = """## Of PyTorch { #pytorch }

<dl class="messages">
<dt>RuntimeError: Expected all tensors to be on the same device,
but found at least two devices, cuda:0 and cuda:1!</dt>
<dd>Not of a model loaded here. With a checkpoint's own code: <code>%glm4v patch FOLDER</code>. With
a device map of your own: <code>%glm4v check MODEL --map FILE</code> names module and line.</dd>
<dt>torch.OutOfMemoryError: CUDA out of memory. Tried to allocate …</dt>
<dd>Here it is an <a href="../OutOfMemoryError/">OutOfMemoryError</a> that says which GPU is short
by how much. Elsewhere: <code>%glm4v plan MODEL --gpus SPEC</code> says what would fit.</dd>
</dl>"""

_QUOTED = re.compile(r'```text title="what it says"\n(.*?)\n```', re.DOTALL)

PACKAGE = Path(__file__).parent.parent / "glm4v_magic"

OPEN = "…"
"""What stands for a part of a message that changes."""

OR = "Or:"
"""What stands between what to do next in one case and in another."""


@dataclass(frozen=True, order=True)
class Message:
    """A message as the code has it.

    Attributes:
        error: name of its class.
        what: what happened, `OPEN` for what changes.
        hint: what to do next, likewise; empty if the code does not say it where the error is made.
    """

    error: str
    what: str
    hint: str


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page; called by mkdocs."""
    files.append(File.generated(config, "errors/messages.md", content=page()))
    return files


def page() -> str:
    """Return the page: a list of messages for each class of errors."""
    read = sorted(set(messages()))
    known = [pattern(each) for each in read]
    quoted = (each for each in examples() if not any(one.match(each.what) for one in known))
    found = sorted({*read, *quoted})
    parts = [
        "# Errors by message",
        "![An error is one line: what happened, where, and what to do next](../images/error.svg)",
        "What an error says, to be searched for: with the browser's own search (Ctrl-F) or the one "
        f"above. {OPEN} stands for what changes: a name, a number, a path. Below each message is "
        "what to do next, in the words of a cell; the title of each section leads to the page that "
        f"explains its kind. There are {len(found):,}, read from the code or its tested examples.",
        OF_OTHERS,
    ]
    for name in dict.fromkeys(each.error for each in found):
        own = (each for each in found if each.error == name)
        entries = "\n".join(_entry(each, f"{name}-{n}") for n, each in enumerate(own, 1))
        parts += [
            f"## [{name}]({name}.md) {{ #{name} }}",
            f'<div class="messages">\n{entries}\n</div>',
        ]
    return "\n\n".join(parts) + "\n"


def _entry(message: Message, name: str) -> str:
    """Return a message as a heading: the search looks there first, and leads to it."""
    what, hint = (html.escape(each) for each in (message.what, message.hint))
    return f'<h3 id="{name}">{what}</h3>' + (f"<p>{hint}</p>" if hint else "")


def messages() -> Iterator[Message]:
    """Yield the messages of all errors that are made with a text of their own."""
    names = set(errors.__all__)
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(_tree(file)):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            what = _text(node.args[0])
            if name in names and name.endswith("Error") and _says_something(what):
                yield Message(name, what, _hint(node, file))


def examples() -> Iterator[Message]:
    """Yield the messages that the pages of the errors quote; a test makes each of them."""
    for file in sorted(Path(__file__).parent.glob("errors/*.md")):
        for said in _QUOTED.findall(file.read_text(encoding="utf-8")):
            yield Message(file.stem, re.sub(rf"^(UsageError|{file.stem}): ", "", said), "")


def _hint(call: ast.Call, file: Path) -> str:
    said = [_advice(each, file) for each in call.args[1:2]]
    for keyword in call.keywords:
        if keyword.arg == "hint":
            said.append(_advice(keyword.value, file))
        if keyword.arg == "code":
            said.append(_of_code(_text(keyword.value)))
    return " ".join(each for each in said if _says_something(each))


def _of_code(code: str) -> str:
    """Return the words of a cell for a code, its values left open."""
    template = CELL.templates.get(code) or COMMON.get(code, "")
    values = dict.fromkeys(_FIELD.findall(template), _Unknown())
    return _SPACES.sub(" ", worded(remark(code, **values), CELL))


def _advice(node: ast.expr, file: Path) -> str:
    """Return what a hint may say: a text, a constant, or what a function returns, here or imported.

    Several are joined by a word.
    """
    if isinstance(node, ast.BoolOp):
        parts = list(node.values)
    elif isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.Name | ast.Call):
        name = getattr(node, "id", "") or getattr(getattr(node, "func", None), "id", "")
        parts, file = _defined(name, file)
    else:
        return _text(node)
    texts = [_advice(each, file) for each in parts]
    return f" {OR} ".join(dict.fromkeys(each for each in texts if _says_something(each))) or OPEN


def _defined(name: str, file: Path) -> tuple[list[ast.expr], Path]:
    """Return what a name of a module may be, or what its function returns, and where that is."""
    for node in _tree(file).body:
        if isinstance(node, ast.Assign) and name in [getattr(t, "id", "") for t in node.targets]:
            return [node.value], file
        if isinstance(node, ast.FunctionDef) and node.name == name:
            inner = (each for each in ast.walk(node) if isinstance(each, ast.Return))
            return [each.value for each in inner if each.value is not None], file
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("glm4v_magic."):
            for each in node.names:
                if (each.asname or each.name) == name:
                    place = PACKAGE.joinpath(*str(node.module).split(".")[1:])
                    there = place.with_suffix(".py")
                    there = there if there.exists() else place / "__init__.py"
                    return _defined(each.name, there) if there != file else ([], file)
    return [], file


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


class _Unknown:
    """A value that is known at run time only, in whatever form a template has it."""

    def __format__(self, _: str) -> str:
        return OPEN

    def __repr__(self) -> str:
        return OPEN


def _text(node: ast.expr) -> str:
    """Return the text of an expression, `OPEN` for each part that is known at run time only."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(each) for each in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return OPEN


def _says_something(text: str) -> bool:
    return len(re.findall(r"\w{2,}", text.replace(OPEN, " "))) > 1


_SPACES = re.compile(r"\s+")
_FIELD = re.compile(r"(?<!\{)\{(\w+)")


def pattern(message: Message) -> re.Pattern[str]:
    """Return the expression that a text with this message begins with."""
    parts = (re.escape(each) for each in _SPACES.sub(" ", message.what).split(OPEN))
    return re.compile(".*".join(parts), re.DOTALL)
