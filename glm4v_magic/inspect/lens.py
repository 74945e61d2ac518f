"""`Lens`, what the layers of a model would have said."""

from __future__ import annotations

from dataclasses import dataclass

from glm4v_magic.inspect.labelled import Labelled

__all__ = ["Lens"]


@dataclass(frozen=True, slots=True, eq=False)
class Lens:
    """Logit lens: what the model would say if its head read the hidden states of each layer.

    Attributes:
        ids: likeliest ids, with the axes ``layer``, ``token`` and ``rank``.
        probabilities: their probabilities; same axes.
        words: their texts; same axes.
        said: rank of the token that was said, from 0; axes ``layer`` and ``token``.
        said_probabilities: its probability; same axes.
    """

    ids: Labelled
    probabilities: Labelled
    words: Labelled
    said: Labelled
    said_probabilities: Labelled
