"""The planner of a page that runs in a browser: states of its controls in, a view out.

Texts in, texts out, both JSON: the page passes them to and from Python in the browser. There the
standard library is all there is, and no checkpoint: the sizes of models are written when the page
is built, see `models_json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from glm4v_magic.core.errors import Glm4vError, InputError, did_you_mean, reason
from glm4v_magic.core.model import Sized
from glm4v_magic.core.model_shape import Activation, ModelShape, PackedMatrix, Product, UnitShape
from glm4v_magic.core.options import OPTIONS
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.typed_options import read_text
from glm4v_magic.core.wording import brief
from glm4v_magic.notebook.draft import draw, load_line
from glm4v_magic.notebook.next_steps import in_cell
from glm4v_magic.notebook.render.plans.device_map import device_map_html
from glm4v_magic.planning.occupancy import Occupancy

__all__ = ["CHOSEN", "WebPlanner", "models_json"]

CHOSEN = ("gpus", "context", "images", "objective", "dtype", "quantize", "offload")
"""Options that the page has a control for."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A model whose sizes came with the page; a `Sized`."""

    name: str
    max_images: int | None
    sizes: ModelShape

    def shape(self) -> ModelShape:
        return self.sizes


def models_json(models: Iterable[Sized]) -> str:
    """Return models as `WebPlanner` reads them."""
    return json.dumps(
        {
            model.name: {"max_images": model.max_images, "shape": asdict(model.shape())}
            for model in models
        },
        separators=(",", ":"),
    )


class WebPlanner:
    """Makes and draws the plans that a page asks for.

    Args:
        models: what `models_json` returned.
    """

    def __init__(self, models: str) -> None:
        self._written: Mapping[str, Any] = json.loads(models)
        self._read: dict[str, _Known] = {}
        self._before: Occupancy | None = None

    def answer(self, asked: str) -> str:
        """Return the view of a plan.

        Args:
            asked: JSON object of texts: ``model``, and those of `CHOSEN` that are set.

        Returns:
            JSON object: ``html`` is the view, ``line`` loads the plan, empty if there is none.
            ``longest`` context and ``most_images`` of the model are null if they are not known.
        """
        words = json.loads(asked)
        name = words.pop("model", "")
        line = ""
        model: _Known | None = None
        try:
            model = self._model(name)
            view, line = _planned(model, words)
        except Glm4vError as error:
            view = _without_plan(model, in_cell(error))
        except Exception as error:  # no old view may stay beside the new value of a control
            view = _without_plan(model, reason(error))
        html = device_map_html(view, before=self._before)
        self._before = view if view.gpus else self._before
        return json.dumps(
            {
                "html": html,
                "line": line,
                "longest": None if model is None else model.sizes.max_context,
                "most_images": None if model is None else model.max_images,
            }
        )

    def _model(self, name: str) -> _Known:
        if name not in self._read:
            if name not in self._written:
                raise InputError(
                    f"This page does not know a model {brief(name)}.",
                    did_you_mean(name, [*self._written]),
                )
            found = self._written[name]
            self._read[name] = _Known(name, found["max_images"], _shape_of(found["shape"]))
        return self._read[name]


def _planned(model: _Known, words: Mapping[str, str]) -> tuple[Occupancy, str]:
    """Return the view of a plan and the line that loads it, which is empty if it does not fit."""
    options = PlacementOptions(
        **{each: read_text(OPTIONS[each], words[each]) for each in CHOSEN if each in words}
    )
    view, plan = draw(model, options)
    return view, load_line(model.name, options) if plan else ""


def _without_plan(model: _Known | None, problem: str) -> Occupancy:
    return Occupancy("no model" if model is None else model.name, "no plan", (), problem=problem)


def _shape_of(written: Mapping[str, Any]) -> ModelShape:
    units = tuple(_unit_of(unit) for unit in written["units"])
    return ModelShape(
        **{**written, "units": units, "vision_modules": tuple(written["vision_modules"])}
    )


def _unit_of(written: Mapping[str, Any]) -> UnitShape:
    tuples = {
        "modules": tuple(written["modules"]),
        "linear": tuple((rows, columns) for rows, columns in written["linear"]),
        "products": tuple(Product(**each) for each in written["products"]),
        "packed": tuple(PackedMatrix(**each) for each in written["packed"]),
        "activations": tuple(Activation(**each) for each in written["activations"]),
    }
    return UnitShape(**{**written, **tuples})
