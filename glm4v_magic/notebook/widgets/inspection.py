"""``%glm4v inspect`` as a widget: choose a word, and the image shows where it comes from."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets

from glm4v_magic.core.errors import Glm4vError, OptionError, reason
from glm4v_magic.core.wording import counted, printable
from glm4v_magic.inspect.maps import PARTS
from glm4v_magic.notebook.live.busy import hear_while_busy
from glm4v_magic.notebook.next_steps import in_cell
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.certainty import shade
from glm4v_magic.notebook.render.templates import fill
from glm4v_magic.notebook.widgets.live import Live, on_main_thread
from glm4v_magic.notebook.widgets.looks import Choice, Shown

__all__ = ["InspectionWidget"]

_BUTTONS = 100  # words as buttons; the menu has all of them
_METHODS = {
    "covering parts": "occlusion",
    "attention": "attention",
    "attention rollout": "rollout",
    "gradient": "gradient",
}
_PARTS = {"2 x 2": 2, "4 x 4": PARTS, "8 x 8": 8}
_STRENGTHS = {"weak": 0.4, "medium": 0.7, "strong": 0.9}
_ALL = "all"
_MEAN = "mean of all"
_EVERY = -1  # value of these two; None is no value of a menu


class InspectionWidget:
    """A look into an answer, or into two.

    Args:
        shell: its main thread runs the model.
        shown: computes what is shown.
    """

    def __init__(self, shell: Any, shown: Shown) -> None:
        self._shell, self._shown = shell, shown
        self._lock = threading.RLock()
        self._is_setting = False
        self._first = self._choice = shown.first()
        self._chosen: MimeBundle = {}
        self._make_controls(self._choice)
        self._rules, self._html = widgets.HTML(), widgets.HTML()
        self._rules.layout.display = "none"
        wrap = widgets.Layout(flex_flow="row wrap", display="flex")
        self._words = widgets.Box(self._make_buttons(), layout=wrap)
        self._words.add_class("glm4v-words")
        left = len(shown.words) - _BUTTONS
        more = widgets.HTML(
            fill("line", line=f"{counted(left, 'more word')} in the menu") if left > 0 else ""
        )
        self.live = Live(
            [
                self._rules,
                self._words,
                more,
                widgets.Box([*self.controls.values()], layout=wrap),
                self._html,
            ],
            lambda: self.static,
            on_hidden=lambda: None,
            on_shown=lambda: None,
        )
        self._put(self._choice, self._drawn_or_why_not(self._choice))
        for control in self.controls.values():
            control.observe(self._changed, "value")
        hear_while_busy(*self._heard())

    @property
    def choice(self) -> Choice:
        """What is chosen."""
        return self._choice

    @property
    def controls(self) -> Mapping[str, Any]:
        """All controls by name, without those of which there is nothing to choose."""
        every = {
            "word": self._word, "method": self._method, "image": self._image,
            "parts": self._parts, "layer": self._layer, "head": self._head,
            "strength": self._strength, "layers": self._layers,
        }  # fmt: skip
        few = len(self._shown.images)
        on_image = ("method", "parts", "layer", "head", "strength")
        return {
            name: each
            for name, each in every.items()
            if (few or name not in on_image) and (few > 1 or name != "image")
        }

    @property
    def buttons(self) -> tuple[Any, ...]:
        """A button for each word."""
        return tuple(self._words.children)

    @property
    def html(self) -> str:
        """What is shown of the word that is chosen."""
        return str(self._html.value)

    @property
    def static(self) -> MimeBundle:
        """Static view: telling words, below what was chosen, if something was."""
        bundle = self._shown.bundle()
        if self._choice == self._first:
            return bundle
        return {
            kind: self._chosen.get(kind, "") + ("\n" if kind == "text/plain" else "") + text
            for kind, text in bundle.items()
        }

    def show(self) -> None:
        """Show it as an output of the running cell."""
        self.live.show()

    def cell_ended(self) -> None:
        """Bring the static view up to date."""
        self.live.refresh_twin()

    def close(self) -> None:
        """Close the widget; the static view stays."""
        self.live.close()

    def _make_controls(self, first: Choice) -> None:
        lines = [each.line for each in self._shown.words]
        self._word = _dropdown("word", [(line, at) for at, line in enumerate(lines)], first.word)
        self._method = _dropdown(
            "method",
            [(name, each) for name, each in _METHODS.items() if each in self._shown.methods],
            first.method,
        )
        images = [
            (_ALL, _EVERY),
            *((f"{at}: {name}", at) for at, name in enumerate(self._shown.images)),
        ]
        self._image = _dropdown("image", images, _EVERY)
        self._parts = _dropdown("parts", [*_PARTS.items()], first.parts)
        self._layer = _dropdown("layer", [(_MEAN, _EVERY)], _EVERY)
        self._head = _dropdown("head", [(_MEAN, _EVERY)], _EVERY)
        self._strength = _dropdown("strength", [*_STRENGTHS.items()], first.strength)
        self._layers = widgets.Checkbox(
            value=False, description="words of each layer", indent=False
        )
        self._show_controls()

    def _make_buttons(self) -> list[Any]:
        layout = widgets.Layout(width="auto", height="auto", margin="1px", padding="0 4px")
        styles: dict[tuple[str, str], Any] = {}
        buttons = []
        for number, word in enumerate(self._shown.words[:_BUTTONS]):
            colour, line = shade(word.probability)
            if (colour, line) not in styles:
                styles[colour, line] = style = widgets.ButtonStyle()
                style.button_color = colour or "transparent"
                if style.has_trait("text_decoration"):
                    style.text_decoration = line or None
            button = widgets.Button(
                description=word.text, tooltip=word.line, layout=layout, style=styles[colour, line]
            )
            if button.has_trait("tabbable"):  # the keyboard has the menu, which is one stop
                button.tabbable = False
            button.on_click(lambda _, number=number: setattr(self._word, "value", number))
            buttons.append(button)
        return buttons

    def _heard(self) -> list[Any]:
        return [*self.controls.values(), *self._words.children]

    def _changed(self, _: Any) -> None:
        with self._lock:
            if self._is_setting:
                return
            self._choice = choice = self._read()
            self._show_controls()
            if self._shown.is_ready(choice):
                self._put(choice, self._drawn_or_why_not(choice))
            else:
                self._html.value = fill("working", line="Computing ...")
                on_main_thread(self._shell, lambda: self._compute(choice))
            hear_while_busy(*self._heard())

    def _read(self) -> Choice:
        """Return what the controls say."""
        method = self._method.value
        has_heads = method == "attention"
        return Choice(
            word=self._word.value,
            image=_number(self._image),
            method=method,
            layer=_number(self._layer) if has_heads else None,
            head=_number(self._head) if has_heads else None,
            parts=self._parts.value if method == "occlusion" else PARTS,
            strength=self._strength.value,
            with_layers=self._layers.value,
        )

    def _show_controls(self) -> None:
        """Hide the controls that the method does not have."""
        method = self._choice.method
        self._parts.layout.display = None if method == "occlusion" else "none"
        for each in (self._layer, self._head):
            each.layout.display = None if method == "attention" else "none"

    def _compute(self, choice: Choice) -> None:
        if choice != self._choice or not self.live.is_open:  # another one waits its turn
            return
        found = self._drawn_or_why_not(choice)
        with self._lock:
            if choice == self._choice and self.live.is_open:
                self._put(choice, found)
                hear_while_busy(*self._heard())

    def _drawn_or_why_not(self, choice: Choice) -> MimeBundle:
        try:
            return self._drawn(choice)
        except Glm4vError as error:
            return _failure(in_cell(error))
        except KeyboardInterrupt:
            return _failure("Stopped.")
        except Exception as error:
            return _failure(reason(error))

    def _put(self, choice: Choice, found: MimeBundle) -> None:
        self._chosen = found
        self._html.value = found["text/html"]
        selector = f"{self.live.selector} .glm4v-words"
        self._rules.value = fill("inspection_rules", selector=selector, number=choice.word + 1)

    def _drawn(self, choice: Choice) -> MimeBundle:
        figures = self._shown.figures(choice)
        if choice.method == "attention":
            self._offer_layers(choice.word)
        tables, missing = [], ""
        if choice.with_layers:
            try:
                tables = self._shown.layers(choice.word)
            except OptionError as error:
                missing = in_cell(error)
        about = self._shown.about(choice.word)
        return {
            "text/plain": "\n".join([*about, *(f"    {each.words}" for each in figures)]),
            "text/html": fill(
                "inspection_chosen", figures=figures, about=about, tables=tables, missing=missing
            ),
        }

    def _offer_layers(self, word: int) -> None:
        layers, heads = self._shown.layers_and_heads(word)
        for control, numbers in ((self._layer, layers), (self._head, range(heads))):
            offered = ((_MEAN, _EVERY), *((str(each), each) for each in numbers))
            if control.options != offered:
                self._is_setting = True
                try:
                    value = control.value
                    control.options = offered
                    control.value = value if value in numbers else _EVERY
                finally:
                    self._is_setting = False


def _number(menu: Any) -> int | None:
    return None if menu.value == _EVERY else int(menu.value)


def _dropdown(name: str, options: Any, value: Any) -> Any:
    style = {"description_width": "4.5em"}
    layout = widgets.Layout(width="16em")
    return widgets.Dropdown(
        options=options, value=value, description=name, style=style, layout=layout
    )


def _failure(text: str) -> MimeBundle:
    return {"text/plain": printable(text), "text/html": fill("failure", text=text)}
