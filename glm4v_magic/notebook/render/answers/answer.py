"""An answer, while it is generated and when it is complete."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.options import Format
from glm4v_magic.core.wording import (
    counted,
    json_text,
    pixels,
    printable,
    readable_bytes,
    readable_seconds,
)
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.boxes import boxes_html, boxes_text
from glm4v_magic.notebook.render.answers.certainty import certainty_html, certainty_text
from glm4v_magic.notebook.render.answers.choices import choices_html, choices_text
from glm4v_magic.notebook.render.answers.thinking import folded, tail_html, tail_lines, thought_line
from glm4v_magic.notebook.render.markdown import literal, safe_markdown
from glm4v_magic.notebook.render.pace import Pace
from glm4v_magic.notebook.render.templates import fill

__all__ = [
    "NO_LOGPROBS",
    "LiveAnswer",
    "answer_bundle",
    "draft_bundle",
    "footnotes",
    "usage_line",
    "without_told",
]


NO_LOGPROBS = "The server sent no log-probabilities."

_ENDED_BY = {"failed": "an error", "unknown": "not told by the server"}
_LONGEST = 300  # characters of a question among the details


class LiveAnswer:
    """Collects the pieces of an answer and shows the text so far, as often as `pace` allows.

    The text so far is shown whole each time: an output is replaced, not appended to. What `pace`
    held back is shown by `finish`, or by `close` if there was no answer after all. `told` is as in
    `footnotes`.
    """

    def __init__(
        self,
        show: Callable[[MimeBundle], None],
        pace: Pace | None = None,
        form: Format = "markdown",
        told: Collection[str] = (),
    ) -> None:
        self._show = show
        self._told = told
        self._form = form
        self._pace = pace or Pace()
        self._begun = ""
        self._text = ""
        self._thinking = ""
        self._fold = ""
        self._held_back = False

    def begin(self, text: str, thinking: str = "") -> None:
        """Begin with text that precedes the pieces; it is never reclassified."""
        self._begun += self._text + text
        self._text = ""
        self._thinking = thinking
        self._fold = _fold(thinking) if text else ""
        self._update(text or thinking)

    def add(self, piece: str) -> None:
        """Take the next piece of text."""
        if self._thinking and not self._fold:
            self._fold = _fold(self._thinking)
        self._text += piece
        self._update(piece)

    def think(self, piece: str) -> None:
        """Take the next piece of thinking."""
        if self._fold:
            self._thinking = self._fold = ""
        self._thinking += piece
        self._update(piece)

    def reclassify(self) -> None:
        """Show as thinking the pieces that were taken as text."""
        text, self._text = self._text, ""
        self.think(text)

    def _update(self, piece: str) -> None:
        self._held_back = self._held_back or bool(piece.strip())
        if self._held_back and self._pace.due():
            self._show_draft()
            self._pace.done()

    def finish(self, answer: Answer) -> None:
        """Show the whole answer with its usage."""
        self._held_back = False
        self._show(answer_bundle(answer, self._told))

    def close(self) -> None:
        """Show text that was held back, if any."""
        if self._held_back:
            self._show_draft()

    def _show_draft(self) -> None:
        self._held_back = False
        bundle = draft_bundle(self._begun + self._text, self._form)
        if self._fold:
            bundle = _with_above(bundle, f"[{thought_line(self._thinking)}]", self._fold)
        elif self._thinking:
            lines = tail_lines(self._thinking)
            bundle = _with_above(bundle, "\n".join(lines), tail_html(self._thinking))
        self._show(bundle)


def _fold(thinking: str) -> str:
    return folded(thinking, thought_line(thinking)) if thinking else ""


def _with_above(bundle: MimeBundle, plain: str, html: str) -> MimeBundle:
    """Return `bundle` with something above it, as text and as one line of HTML."""
    above = {"text/plain": f"{plain}\n", "text/markdown": f"{html}\n\n"}
    return {kind: f"{above[kind]}{shown}".strip() for kind, shown in bundle.items()}


def draft_bundle(text: str, form: Format = "markdown") -> MimeBundle:
    """Return the text of an answer that is still being written."""
    plain = printable(text).strip()
    if form == "text":
        return {"text/plain": plain}
    is_fenced = form == "json" and plain
    markdown = _fenced(plain, form) if is_fenced else safe_markdown(text.strip())
    return {"text/plain": plain, "text/markdown": markdown}


def answer_bundle(answer: Answer, told: Collection[str] = ()) -> MimeBundle:
    """Return an answer with its footnotes: usage, and what to know about the model.

    As Markdown, details are folded under the usage, and the model's thinking above the answer. An
    answer in plain text has no Markdown. With the tokens of an answer, its words are shaded by
    certainty, and shown as they were written. `told` is as in `footnotes`.
    """
    text = answer.text
    if answer.format == "json" and answer.value is not None:
        text = json_text(answer.value, indent=2)
    bundle = draft_bundle(text, answer.format)
    if answer.tokens:
        if "text/markdown" in bundle:
            bundle["text/markdown"] = certainty_html(answer)
        bundle["text/plain"] = f"{bundle['text/plain']}\n\n{certainty_text(answer)}\n"
    if answer.choices:
        if "text/markdown" in bundle:
            said = bundle["text/markdown"] if answer.tokens else literal(answer.text)
            bundle["text/markdown"] = f"{said}\n\n{choices_html(answer)}"
        bundle["text/plain"] += f"\n{choices_text(answer)}"
    if answer.marks:
        _add_boxes(bundle, answer)
    if answer.thinking:
        line = thought_line(answer.thinking, answer.usage)
        plain = f"[{line}]"
        if not text:  # the thinking is all there is
            plain += f"\n{printable(answer.thinking)}"
        bundle = _with_above(bundle, plain, folded(answer.thinking, line, is_open=not text))
    usage, *notes = footnotes(answer, told)
    if "text/markdown" in bundle:
        facts = [(name, " ".join(fact.split())) for name, fact in _facts(answer)]
        below = fill("answer_facts", notes=notes, usage=usage, facts=facts)
        bundle["text/markdown"] = f"{bundle['text/markdown']}\n\n{below}".strip()
    bundle["text/plain"] = "\n".join([bundle["text/plain"], usage, *notes]).strip()
    return bundle


def _add_boxes(bundle: dict[str, str], answer: Answer) -> None:
    """Add the boxes and points of an answer below its text."""
    if "text/markdown" in bundle:
        bundle["text/markdown"] += f"\n\n{boxes_html(answer)}"
    bundle["text/plain"] += f"\n{boxes_text(answer)}"


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    mark = "`" * max(3, longest + 1)
    return f"{mark}{language}\n{text}\n{mark}"


def _facts(answer: Answer) -> Iterator[tuple[str, str]]:
    question = answer.prompt
    yield "question", f"{question[:_LONGEST]}..." if len(question) > _LONGEST else question
    for image in answer.images:
        yield "image", f"{image.source}, {pixels(image.original_size)}"
    yield "model", answer.model
    for name, count in (
        ("tokens in", answer.usage.prompt_tokens),
        ("tokens out", answer.usage.new_tokens),
    ):
        yield name, "not counted by the server" if count is None else f"{count:,}"
    yield "ended by", _ENDED_BY.get(answer.finish_reason, answer.finish_reason)
    yield "seed", "none: greedy" if answer.seed is None else str(answer.seed)
    if answer.format != "markdown":
        yield "format", answer.format
    if answer.corrected:
        yield "corrected", answer.corrected
    if answer.plan is not None:
        gpus = ", ".join(stage.device for stage in answer.plan.stages if stage.units)
        yield "plan", f"{gpus}; the fullest {answer.plan.fullness:.0%} full"


def footnotes(answer: Answer, told: Collection[str] = ()) -> tuple[str, ...]:
    """Return the lines beneath an answer: its usage, then what else there is to know about it.

    Args:
        answer: the answer.
        told: notices of models that were shown before, and are left out.
    """
    notes = [usage_line(answer)]
    if answer.tokens == () and answer.text:
        notes.append(NO_LOGPROBS)
    if answer.boxes_fault:
        notes.append(answer.boxes_fault)
    if notice := without_told(answer.notice, told):
        notes.append(notice)
    return tuple(notes)


def without_told(notice: str, told: Collection[str]) -> str:
    """Return the notice of an answer without that of its model, if `told` has it."""
    for each in told:
        notice = notice.removeprefix(each)
    return notice.strip()


def usage_line(answer: Answer) -> str:
    """Return model, tokens in and out, time to first token, speed, peak memory and seed."""
    usage = answer.usage
    facts = [answer.model, *_counts(usage)]
    if usage.time_to_first_token is not None:
        facts.append(f"first token after {readable_seconds(usage.time_to_first_token)}")
    if usage.tokens_per_second is not None:
        facts.append(f"{usage.tokens_per_second:.1f} tokens/s")
    facts += [f"{gpu} peak {readable_bytes(peak)}" for gpu, peak in usage.peak_bytes.items()]
    if answer.seed is not None:
        facts.append(f"seed {answer.seed}")
    when = " while it was thinking" if answer.thinking and not answer.text else ""
    if answer.finish_reason == "length":
        facts.append(f"cut off at the token limit{when}")
    elif answer.finish_reason == "interrupted":
        facts.append(f"stopped by you{when}")
    elif answer.finish_reason == "failed":
        facts.append(f"broken off by an error{when}")
    return " · ".join(printable(fact) for fact in facts)


def _counts(usage: Usage) -> Iterator[str]:
    if usage.text_tokens is None or usage.new_tokens is None:
        yield "tokens not counted by the server"
        return
    if usage.visual_tokens is None:
        yield f"{counted(usage.text_tokens, 'token')} in, images included"
    else:
        yield f"{usage.text_tokens:,} text + {usage.visual_tokens:,} visual tokens in"
    yield counted(usage.new_tokens, "token") + " out"
