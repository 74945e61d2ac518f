r"""The sanitiser: Markdown from a model, made safe for any page.

JupyterLab, VS Code and nbconvert read Markdown with different parsers, and nbconvert lets raw
HTML through. So nothing is left to their judgement: code, maths and http(s) links are recognised
here and written in one form on which all parsers agree, and outside of them every character that
could open code, maths, a link, an image or a tag becomes a character reference, which Markdown
shows but never interprets. Headings, lists, tables, quotes and emphasis pass as they are.

The result is Markdown, which no template can make, so the few tags in it are written here:
``<span>`` around a character reference, and ``<code>`` around a code span in which a table would
end it; both hold character references alone. Tables in HTML are written by `html_table`.

Kept                                    Changed
fenced code, as a fence at column 0     raw HTML shows as typed
code spans on one line                  images become links: no page fetches what a model names
``$x^2$``, ``$$...$$``, ``\(x\)``,      ``$5 and $6`` stays money
``\begin{align}`` on its own lines
``[text](https://...)``, bare URLs      every other link target shows as typed, addresses too
``<table>`` on a line of its own        all attributes but ``colspan`` and ``rowspan``, most tags
"""

from __future__ import annotations

import re

from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.render import Html, joined
from glm4v_magic.notebook.render.html_table import begins_table, safe_table

__all__ = ["in_attribute", "literal", "safe_markdown"]

_FENCE = re.compile(r"[ \t]*(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)")
_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.-]*")
_DRAWN = ("mermaid", "math")  # pages draw code in these languages instead of showing it

# The lengths of code and maths are bounded so that a page of unclosed openers, shown again ten
# times a second, stays cheap. Displayed maths ends before the next opener, and so may be long.
_TOKEN = re.compile(
    r"""
    (?<!`)(?P<ticks>`+)(?!`)(?P<code>[^\n]{1,2000}?)(?<!`)(?P=ticks)(?!`)
    | \$\$(?P<display>(?:(?!\n[ \t]*\n)[^$]){1,20000}?)\$\$
    | \\\[(?P<display_tex>(?:(?!\n[ \t]*\n|\\\[).){1,20000}?)\\\]
    | ^[ \t]*(?P<alone>\\begin{(?P<name>(?:equation|align|alignat|gather|multline|eqnarray)\*?)}
      (?:(?!\n[ \t]*\n|\\begin{(?P=name)}).){1,20000}?\\end{(?P=name)})[ \t]*$
    | (?<![\w$])\$(?P<inline>(?=[^\s$])[^$\n]{1,500}?(?<![\s\\]))\$(?![\w$])
    | \\\((?P<inline_tex>[^\n]{1,500}?)\\\)
    | (?P<bangs>!{0,20}+)\[(?P<label>[^][\n]{1,500})\]
      \((?P<url>https?://(?:[^][\s()<>"'`\\{}]|\([^][\s()<>"'`\\{}]*\)){1,2000})\)
    | \\(?P<escaped>[!-/:-@[-`{-~])
    | (?P<special>[<&\\$`[@] | (?<=[fF][tT][pP]):(?=//))
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)

_CODE, _ALONE = Html("<code>{}</code>"), Html("<span>{}</span>")

_MATHS = {"display": "$$", "display_tex": "$$", "alone": "$$", "inline": "$", "inline_tex": "$"}

# TeX commands that reach out of a formula: links, styles, identifiers, new definitions, packages.
_REACHES_OUT = re.compile(
    r"\\(?:href|url|html\w*|class|cssId|style|require|includegraphics|input|[gex]?def|let|global"
    r"|futurelet|csname|(?:re)?newcommand|providecommand|(?:re)?newenvironment|begingroup|unicode"
    r"|Declare[A-Za-z]*|Newextarrow|mathtoolsset|data|mmlToken|texttip|tooltip|bbox)(?![A-Za-z])"
)


def safe_markdown(text: str) -> str:
    """Return Markdown that shows `text` without letting it act on the page.

    Finished pieces come out the same whatever follows them, and a code block that has not ended
    yet is closed, so that the result of a half-finished answer is complete Markdown too.
    """
    text = printable(text)
    pieces: list[str] = []
    prose: list[str] = []
    at = 0
    while at <= len(text):
        end = _end_of_line(text, at)
        opening = _FENCE.fullmatch(text, at, end)
        is_table = opening is None and begins_table(text, at)
        if prose and (opening or is_table):
            pieces.append(_safe_prose("\n".join(prose)))
            prose.clear()
        if opening is not None:
            code, at = _code(text, end + 1, opening["mark"])
            pieces.append(_fenced(code, opening))
        elif is_table:
            table, at = safe_table(text, at, _in_cell)
            # Blank lines around it: within a paragraph the tags would be text or Markdown.
            pieces += ["", table, ""] if pieces else [table, ""]
            at += text.startswith("\n", at) or at == len(text)
        else:
            prose.append(text[at:end])
            at = end + 1
    if prose:
        pieces.append(_safe_prose("\n".join(prose)))
    return "\n".join(pieces)


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _code(text: str, at: int, mark: str) -> tuple[list[str], int]:
    """Return the lines of a code block, and where what follows it begins."""
    code: list[str] = []
    while at <= len(text):
        end = _end_of_line(text, at)
        line, at = text[at:end], end + 1
        if _closes(line, mark):
            break
        code.append(line)
    return code, at


def _in_cell(text: str) -> Html:
    """Return HTML that shows one line of text; formulas are kept, everything else is literal."""
    pieces: list[Html] = []
    at = 0
    for match in _TOKEN.finditer(text):
        if (maths := _maths_of(match)) is not None and maths:
            pieces += [_in_html(text[at : match.start()]), Html(maths.replace("&", "&amp;"))]
            at = match.end()
    return joined([*pieces, _in_html(text[at:])])


def _in_html(text: str) -> Html:
    return Html(re.sub(r"[^\w ]|_", lambda match: _reference(match[0]), text))


def _closes(line: str, mark: str) -> bool:
    run = line.strip(" \t")
    return len(run) >= len(mark) and set(run) == {mark[0]}


def _fenced(code: list[str], opening: re.Match[str]) -> str:
    """Write a code block at column 0, where no list or quote can end it early."""
    indent = len(opening[0]) - len(opening[0].lstrip(" \t"))
    body = [line[indent:] if line[:indent].isspace() else line for line in code]
    longest = max((len(run) for line in body for run in re.findall("`+", line)), default=0)
    mark = "`" * max(3, longest + 1)
    match = _LANGUAGE.match(opening["info"])
    language = match[0] if match and match[0].lower() not in _DRAWN else ""
    return "\n".join([mark + language, *body, mark])


def _safe_prose(text: str) -> str:
    return _TOKEN.sub(_safe_token, text)


def _safe_token(match: re.Match[str]) -> str:
    if match["code"] is not None:
        return _safe_code(match["code"], match["ticks"])
    if (maths := _maths_of(match)) is not None:
        return maths or literal(match[0])
    if match["label"] is not None:
        # One "!" is dropped, and no other may stand before the link and make it an image again:
        # of more than the token holds, the last is a reference.
        url = match["url"].replace("$", "%24").replace("|", "%7C")
        return f"{literal(match['bangs'][1:])}[{_safe_prose(match['label'])}]({url})"
    return _reference(match["escaped"] or match["special"])


def _maths_of(match: re.Match[str]) -> str | None:
    """Return the formula in a token, empty if it is not safe; ``None`` for other tokens."""
    for group, mark in _MATHS.items():
        if match[group] is not None:
            return _safe_maths(match[group], mark)
    return None


def _safe_code(code: str, ticks: str) -> str:
    if "<" not in code and "|" not in code:
        return f"{ticks}{code}{ticks}"
    # A table splits its row at "|" even inside backticks, which would let "<" out of the code.
    inner = code[1:-1] if code[0] == code[-1] == " " and code.strip() else code
    return _CODE.fill(Html(re.sub(r"[^\w\s]", lambda match: f"&#{ord(match[0])};", inner)))


def _safe_maths(body: str, mark: str) -> str:
    """Return the formula between `mark`s; empty if it is not one, or could affect the page."""
    body = body.strip()
    if not body or re.search(r"[`$]", body) or _REACHES_OUT.search(body):
        return ""
    if mark == "$" and body[0].isdigit() and not re.search(r"[\\^_={+]", body):
        return ""  # "$5, not 6$" is money
    groups = re.sub(r"\\.", "", body, flags=re.DOTALL)  # "\left\{" opens none
    if groups.count("{") != groups.count("}"):
        return ""
    return mark + body.replace("<", r"\lt ").replace(">", r"\gt ") + mark


def literal(text: str) -> str:
    """Return Markdown that shows `text`, one line, character for character."""
    return re.sub(r"[<&\\$`[!*_~|#]", lambda match: _reference(match[0]), printable(text))


def in_attribute(text: str) -> str:
    """Return `text` for an attribute of HTML within Markdown, all but letters as references.

    A page may look for formulas in Markdown before it reads the HTML in it.
    """
    return re.sub(r"[^\w ]|_", lambda match: f"&#{ord(match[0])};", printable(text))


def _reference(character: str) -> str:
    """Write one character so that Markdown shows it and does nothing else.

    MathJax searches the finished page for ``$`` and backslashes, where a reference has become the
    character again; alone inside an element they are not found.
    """
    reference = f"&#{ord(character)};"
    return _ALONE.fill(Html(reference)) if character in "$\\" else reference
