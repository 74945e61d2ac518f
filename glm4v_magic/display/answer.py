"""An answer: while it is being written, and when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from glm4v_magic.conversation import Answer, Usage
from glm4v_magic.display import MimeBundle
from glm4v_magic.display.markdown import literal, safe_markdown
from glm4v_magic.display.pace import Pace
from glm4v_magic.display.text import counted, printable, readable_bytes, readable_seconds

__all__ = ["LiveAnswer", "answer_bundle", "draft_bundle", "footnotes", "usage_line"]


class LiveAnswer:
    """Collects the pieces of an answer and shows what there is, as often as `pace` allows.

    The text so far is shown whole each time: an output is replaced, not appended to. What `pace`
    held back is shown by `finish`, or by `close` if there was no answer after all.
    """

    def __init__(self, show: Callable[[MimeBundle], None], pace: Pace | None = None) -> None:
        self._show = show
        self._pace = pace or Pace()
        self._text = ""
        self._held_back = False

    def add(self, piece: str) -> None:
        """Take the next piece of text."""
        self._text += piece
        self._held_back = bool(self._text.strip())
        if self._held_back and self._pace.due():
            self._show_draft()

    def finish(self, answer: Answer) -> None:
        """Show the whole answer with its usage."""
        self._held_back = False
        self._show(answer_bundle(answer))

    def close(self) -> None:
        """Show what was held back, if anything."""
        if self._held_back:
            self._show_draft()

    def _show_draft(self) -> None:
        self._held_back = False
        self._show(draft_bundle(self._text))


def draft_bundle(text: str) -> MimeBundle:
    """Return the text of an answer that is still being written."""
    return {
        "text/plain": printable(text).strip(),
        "text/markdown": safe_markdown(text.strip()),
    }


def answer_bundle(answer: Answer) -> MimeBundle:
    """Return an answer with its footnotes: usage, and what to know about the model."""
    draft = draft_bundle(answer.text)
    notes = footnotes(answer)
    # "<small>" opens no HTML block, so the notes stay a paragraph whatever comes before them.
    small = "  \n".join(f"<small>{literal(note)}</small>" for note in notes)
    return {
        "text/plain": "\n".join([draft["text/plain"], *notes]).strip(),
        "text/markdown": f"{draft['text/markdown']}\n\n{small}".strip(),
    }


def footnotes(answer: Answer) -> tuple[str, ...]:
    """Return the lines beneath an answer: its usage, then the model's notice if it has one."""
    return (usage_line(answer), answer.notice) if answer.notice else (usage_line(answer),)


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
    if answer.finish_reason == "length":
        facts.append("cut off at the token limit")
    elif answer.finish_reason == "interrupted":
        facts.append("stopped by you")
    return " · ".join(printable(fact) for fact in facts)


def _counts(usage: Usage) -> Iterator[str]:
    if usage.text_tokens is None or usage.new_tokens is None:
        yield "tokens not counted by the server"
        return
    if usage.visual_tokens is None:
        yield f"{counted(usage.text_tokens, 'token')} in, pictures included"
    else:
        yield f"{usage.text_tokens:,} text + {usage.visual_tokens:,} visual tokens in"
    yield counted(usage.new_tokens, "token") + " out"
