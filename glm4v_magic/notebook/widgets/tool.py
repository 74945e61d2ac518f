"""``%glm4v devices`` before loading: choose GPUs and options, and see the plan at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from glm4v_magic.core.errors import Glm4vError, reason
from glm4v_magic.core.model_shape import DTYPE_BYTES
from glm4v_magic.core.options import OBJECTIVES, QUANTIZATIONS
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.live.busy import hear_while_busy
from glm4v_magic.notebook.monitor import CLOCK
from glm4v_magic.notebook.next_steps import in_cell
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.plans.device_map import device_map_bundle, device_map_html
from glm4v_magic.notebook.render.templates import fill
from glm4v_magic.notebook.widgets.live import Live, on_main_thread

if TYPE_CHECKING:
    from glm4v_magic.core.model_shape import ModelShape
    from glm4v_magic.planning.occupancy import Occupancy

__all__ = ["DeviceTool", "Draft"]

_GPUS = ("4x16GiB", "2x24GiB", "3x11GiB", "8x8GiB", "1x80GiB", "cpu")
_HERE, _PUBLISHED, _NO, _ANY = "those here", "as published", "no", "any GPU"
_TOWER = {"cut if it pays": None, "cut": True, "whole if it fits": False}
_STEP = 256
_MOST_IMAGES = 64
_TOP = "text/html"


class Draft:
    """A plan in the making, with the actions of the tool.

    Args:
        model: name of the model, as the user would type it.
        shape: sizes of the model.
        max_images: maximum number of images in a prompt; ``None`` for any number.
        draw: makes the view and JSON of the plan for options; an error becomes part of the view.
        line: writes options as a line that loads.
        check: makes a dry run of a plan; returns what to show.
        load: loads a model by options; yields what to show of it, the outcome last.
    """

    def __init__(
        self,
        model: str,
        shape: ModelShape,
        max_images: int | None,
        *,
        draw: Callable[[PlacementOptions], tuple[Occupancy, str]],
        line: Callable[[PlacementOptions], str],
        check: Callable[[PlacementOptions], MimeBundle],
        load: Callable[[PlacementOptions], Generator[MimeBundle, None, None]],
    ) -> None:
        self.model = model
        self.shape = shape
        self.max_images = max_images
        self.draw = draw
        self.line = line
        self.check = check
        self.load = load


class DeviceTool:
    """Controls, the view of their plan, and buttons to check and to load it.

    Args:
        shell: shell whose main thread checks and loads.
        draft: plan that the controls change.
        options: initial options; those without a control stay as they are.

    Attributes:
        draft: as given.
    """

    def __init__(self, shell: Any, draft: Draft, options: PlacementOptions) -> None:
        self._shell = shell
        self.draft = draft
        self._options = options
        self._lock = threading.RLock()
        self._is_setting = False
        self._is_working = False
        self._result: MimeBundle = {}
        self._json = ""  # of the plan; empty if there is none
        self._make_controls(options)
        self._html, self._copy, self._outcome = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._outcome.layout.max_height = "40em"
        wrap = widgets.Layout(flex_flow="row wrap", display="flex", max_width="100%")
        pin = widgets.Box([self._unit, self._gpu], layout=wrap)
        self._pins = widgets.Box(layout=widgets.Layout(flex_flow="row wrap", display="flex"))
        self._before: Occupancy | None = None
        rows = [
            self._gpus, self._context, self._images, self._objective, self._dtype,
            self._quantize, pin, self._split, self._offload, self._table,
        ]  # fmt: skip
        self.live = Live(
            [
                widgets.Box(rows, layout=wrap),
                self._pins,
                self._html,
                widgets.Box([self._check, self._load], layout=wrap),
                self._outcome,
                self._copy,
            ],
            self._bundle,
            on_hidden=lambda: None,
            on_shown=lambda: None,
        )
        self._compute(lambda: options)
        for control in self.controls.values():
            if control not in (self._check, self._load):
                control.observe(self._changed, "value")
        self._check.on_click(lambda _: self._start("Checking ...", self._run_check))
        self._load.on_click(lambda _: self._start("Loading ...", self._run_load, outlives=True))
        hear_while_busy(*self.controls.values())

    @property
    def options(self) -> PlacementOptions:
        """Options of the controls."""
        return self._options

    @property
    def controls(self) -> Mapping[str, Any]:
        """All controls by name."""
        return {
            "gpus": self._gpus, "context": self._context, "images": self._images,
            "objective": self._objective, "dtype": self._dtype, "quantize": self._quantize,
            "split_vision": self._split, "offload": self._offload, "pin": self._unit,
            "to": self._gpu, "table": self._table, "check": self._check, "load": self._load,
        }  # fmt: skip

    @property
    def view(self) -> Occupancy:
        """View of the current plan."""
        return self._view

    @property
    def outcome(self) -> str:
        """Result of the last button as HTML; empty after a control has changed."""
        return str(self._outcome.value)

    def show(self) -> None:
        """Show it as an output of the running cell."""
        self.live.show()

    def cell_ended(self) -> None:
        """Does nothing: the static view is updated after every change."""

    def close(self) -> None:
        """Close the widget; the static view stays."""
        self.live.close()

    def _make_controls(self, options: PlacementOptions) -> None:
        shape, most = self.draft.shape, self.draft.max_images
        wide = {"description_width": "6em"}
        self._gpus = widgets.Combobox(
            value=options.gpus or "", options=_GPUS, placeholder=_HERE, description="GPUs",
            continuous_update=False, style=wide,
        )  # fmt: skip
        self._gpus.tooltip = 'such as "24+16+12GiB"'  # IPython widgets 7 refuse it above
        # Not a slider: its handle would have no name for a screen reader.
        self._context = widgets.BoundedIntText(
            value=options.context or shape.max_context,
            min=min(_STEP, shape.max_context, options.context or _STEP),
            max=shape.max_context, step=_STEP, description="context", style=wide,
        )  # fmt: skip
        self._images = widgets.BoundedIntText(
            value=options.images, min=0, max=_MOST_IMAGES if most is None else most,
            description="images", style=wide,
        )  # fmt: skip
        self._objective = _dropdown("objective", OBJECTIVES, options.objective)
        dtypes = (_PUBLISHED, *DTYPE_BYTES)
        self._dtype = _dropdown("dtype", dtypes, options.dtype or _PUBLISHED)
        self._quantize = _dropdown("quantise", (_NO, *QUANTIZATIONS), options.quantize or _NO)
        how = next(how for how, value in _TOWER.items() if value is options.split_vision)
        self._split = _dropdown("tower", _TOWER, how)
        self._offload = _checkbox("offload if need be", options.offload)
        units = ["vision", *(u.name for u in shape.units if not u.kind.startswith("vision"))]
        self._unit = _dropdown("pin", units, units[0])
        self._gpu = _dropdown("to", (_ANY,), _ANY, "2em")
        self._table = _checkbox("unfold the table", False)
        self._check = widgets.Button(description="Check (dry run)", icon="check")
        self._load = widgets.Button(description="Load", icon="upload", button_style="primary")

    def _changed(self, change: Any) -> None:
        with self._lock:
            if self._is_setting:
                return
            if change["owner"] is self._unit:
                self._show_pin()
            elif change["owner"] is self._table:
                self._draw()
            else:
                self._compute(self._read)
            hear_while_busy(*self.controls.values())

    def _read(self) -> PlacementOptions:
        """Return the options of the controls; those without a control as before."""
        pins = dict(self._options.pin)
        if self._gpu.value == _ANY:
            pins.pop(self._unit.value, None)
        else:
            pins[self._unit.value] = _index_of(self._gpu.value)
        context = self._context.value
        return replace(
            self._options,
            gpus=self._gpus.value.strip() or None,
            context=None if context == self.draft.shape.max_context else context,
            images=self._images.value,
            objective=self._objective.value,
            dtype=None if self._dtype.value == _PUBLISHED else self._dtype.value,
            quantize=None if self._quantize.value == _NO else self._quantize.value,
            split_vision=_TOWER[self._split.value],
            offload=self._offload.value,
            pin=tuple(pins.items()),
        )

    def _compute(self, read: Callable[[], PlacementOptions]) -> None:
        """Plan for what `read` returns, and show the plan."""
        from glm4v_magic.planning.occupancy import Occupancy

        self._result = {}
        self._at = time.strftime(CLOCK)
        self._json = ""
        problem = ""
        try:
            self._options = read()
            self._view, self._json = self.draft.draw(self._options)
        except Glm4vError as error:
            problem = in_cell(error)
        except Exception as error:  # no old view may stay beside the new value of a control
            problem = reason(error)
        if problem:
            self._view = Occupancy(self.draft.model, "no plan", (), problem=problem)
        else:
            self._before = self._view
        self._show_buttons()
        self._show_gpus()
        self._show_pins()
        self._draw()
        self._copy.value = (
            fill("plan_copy", line=self.draft.line(self._options), json=self._json)
            if self._json
            else ""
        )
        self._outcome.value = ""
        self.live.refresh_twin()

    def _draw(self) -> None:
        self._html.value = device_map_html(
            self._view, table_open=self._table.value, before=self._before
        )

    def _show_buttons(self) -> None:
        """Enable the buttons if there is a plan and none is working."""
        self._check.disabled = self._load.disabled = self._is_working or not self._json

    def _show_gpus(self) -> None:
        """Offer the current GPUs for pins."""
        devices = sorted(
            (gpu.device for gpu in self._view.gpus if gpu.usable_bytes is not None),
            key=_index_of,
        )
        pinned = {self._device(index) for _, index in self._options.pin}
        offered = (_ANY, *dict.fromkeys([*devices, *sorted(pinned)]))
        if self._gpu.options != offered:
            self._quietly(self._gpu, options=offered, value=self._pin())

    def _show_pins(self) -> None:
        """Show a button for each pin, which takes it back."""
        names = [f"{unit} on {self._device(index)}" for unit, index in self._options.pin]
        if names == [each.description for each in self._pins.children]:
            return
        for each in self._pins.children:
            each.close()
        buttons = []
        for name, (unit, _) in zip(names, self._options.pin, strict=True):
            button = widgets.Button(description=name, icon="times", tooltip=f"take back: {name}")
            button.layout.width = "auto"
            button.on_click(lambda _, unit=unit: self._take_back(unit))
            buttons.append(button)
        self._pins.children = tuple(buttons)
        hear_while_busy(*buttons)

    def _take_back(self, unit: str) -> None:
        with self._lock:
            others = tuple((name, index) for name, index in self._options.pin if name != unit)
            options = replace(self._options, pin=others)
            self._compute(lambda: options)
            self._show_pin()
            hear_while_busy(*self.controls.values())

    @property
    def pins(self) -> tuple[Any, ...]:
        """A button for each pin, which takes it back."""
        return tuple(self._pins.children)

    def _show_pin(self) -> None:
        self._quietly(self._gpu, value=self._pin())

    def _pin(self) -> str:
        index = dict(self._options.pin).get(self._unit.value)
        return _ANY if index is None else self._device(index)

    def _device(self, index: int) -> str:
        """Return the name of a GPU, which may not be there any more."""
        known = {
            _index_of(gpu.device): gpu.device for gpu in self._view.gpus if gpu.device != "cpu"
        }
        return known.get(index, f"cuda:{index}")

    def _quietly(self, control: Any, **traits: Any) -> None:
        """Set traits of a control without calling `_changed`."""
        self._is_setting = True
        try:
            for name, value in traits.items():
                setattr(control, name, value)
        finally:
            self._is_setting = False

    def _bundle(self) -> MimeBundle:
        bundle = device_map_bundle(self._view, self._at)
        return {
            kind: text + ("\n" if kind != _TOP else "") + self._result.get(kind, "")
            if self._result
            else text
            for kind, text in bundle.items()
        }

    def _start(self, what: str, work: Callable[[], MimeBundle], *, outlives: bool = False) -> None:
        """Check or load, on the main thread; the buttons wait until that is done.

        Args:
            what: text shown meanwhile.
            work: action on the options at the moment when it begins; returns its outcome.
            outlives: whether to show the outcome even if the plan has changed.
        """
        with self._lock:
            if self._is_working:
                return
            self._is_working = True
            self._show_buttons()
            self._outcome.value = fill("working", line=what)

        def run() -> None:
            view = self._view
            try:
                outcome = work()
            except Glm4vError as error:
                outcome = _failure(in_cell(error))
            except KeyboardInterrupt:
                outcome = _failure("Stopped.")
            except Exception as error:
                outcome = _failure(reason(error))
            with self._lock:
                self._is_working = False
                if self.live.is_open:
                    if not outlives and view != self._view:
                        outcome = {}
                    self._result = outcome
                    self._outcome.value = outcome.get(_TOP, "")
                    self._show_buttons()
                    self.live.refresh_twin()
                    hear_while_busy(*self.controls.values())

        on_main_thread(self._shell, run)

    def _run_check(self) -> MimeBundle:
        return self.draft.check(self._options)

    def _run_load(self) -> MimeBundle:
        bundle: MimeBundle = {}
        with closing(self.draft.load(self._options)) as bundles:
            for bundle in bundles:
                self._outcome.value = bundle[_TOP]
        return bundle


def _dropdown(name: str, choices: Any, value: Any, width: str = "6em") -> Any:
    wide = {"description_width": width}
    return widgets.Dropdown(options=tuple(choices), value=value, description=name, style=wide)


def _checkbox(name: str, value: bool) -> Any:
    return widgets.Checkbox(value=value, description=name, indent=False)


def _failure(text: str) -> MimeBundle:
    return {
        "text/plain": printable(text),
        _TOP: fill("failure", text=text),
    }


def _index_of(device: str) -> int:
    return int(device.rpartition(":")[2])
