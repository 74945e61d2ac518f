"""`Evaluations`: the model in use is asked what is known, and its answers are scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.call import terms_of
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.python_options import accepts
from glm4v_magic.core.remarks import PYTHON
from glm4v_magic.session.maps import Maps
from glm4v_magic.session.stream import Stream

if TYPE_CHECKING:
    from glm4v_magic.core.remarks import Words
    from glm4v_magic.mapping.evaluation import Evaluation
    from glm4v_magic.mapping.runner import Read, ReadVideo

__all__ = ["Evaluations"]

_OF_SCORES = ("by", "bins")


class Evaluations(Maps):
    """Maps over rows whose answers are known."""

    @accepts("evaluate")
    def evaluate(
        self,
        dataset: object,
        prompt: str,
        *,
        answer: object,
        images: object = None,
        shared: object = (),
        video: object = None,
        before_video: int | None = None,
        names: Mapping[str, object] | None = None,
        read: Read | None = None,
        read_video: ReadVideo | None = None,
        **options: Any,
    ) -> Evaluation:
        """Ask the same of many whose answers are known, and say how many are right.

        Errors as `stream_evaluate`.

        Args:
            dataset: a DataFrame, another table, or a list of dictionaries.
            prompt: the question, as of `stream_map`.
            answer: column with the expected answers.
            images: column with the images; without one each row is in the prompt.
            shared: images that go with every row.
            video: a video that goes with every row; see `stream`.
            before_video: number of these images that stand before it; all of them by default.
            names: what else expressions in the prompt may use.
            read: as of `stream_map`.
            read_video: likewise.
            options: how rows are asked, how tokens are chosen, and how they are scored.
        """
        evaluation: Evaluation = self.stream_evaluate(
            dataset,
            prompt,
            answer=answer,
            images=images,
            shared=shared,
            video=video,
            before_video=before_video,
            names=names,
            read=read,
            read_video=read_video,
            **options,
        ).follow()
        return evaluation

    @accepts("evaluate")
    def stream_evaluate(
        self,
        dataset: object,
        prompt: str,
        *,
        answer: object,
        images: object = None,
        shared: object = (),
        video: object = None,
        before_video: int | None = None,
        names: Mapping[str, object] | None = None,
        read: Read | None = None,
        read_video: ReadVideo | None = None,
        words: Words = PYTHON,
        **options: Any,
    ) -> Stream:
        """Map a prompt over rows whose answers are known, and hold the model's against them.

        An answer is right if it is the expected one, with ``choices`` the same choice; see
        `mapping.scoring.normal` for how texts are compared. With the format json values are
        compared. A row whose answer is not in its form is wrong; one that failed, or for which no
        answer is known, does not count. Rows go on where they stopped, as those of `stream_map`.

        Args:
            dataset: a DataFrame, another table, or a list of dictionaries.
            prompt: the question, as of `stream_map`.
            answer: column with the expected answers.
            images: column with the images; without one each row is in the prompt.
            shared: images that go with every row.
            video: a video that goes with every row; see `stream`.
            before_video: number of these images that stand before it; all of them by default.
            names: what else expressions in the prompt may use.
            read: as of `stream_map`.
            read_video: likewise.
            words: likewise.
            options: how rows are asked, how tokens are chosen, and how they are scored.

        Returns:
            Its events, as of `stream_map`; the result is a `mapping.evaluation.Evaluation`, and so
            is what a `Progress` or an interrupt has of the rows until then.

        Raises:
            InputError: if there is no such column, it holds no answer, or one that is none of the
                choices; nothing was asked.
            Glm4vError: any other as `stream_map`.
        """
        from glm4v_magic.mapping.evaluating import evaluated
        from glm4v_magic.mapping.items import Items, items_of
        from glm4v_magic.mapping.scoring import BINS, truth_of

        form = terms_of(options).form
        if options.get("bins") is not None and not form.choices:
            what = "bins is about the probabilities of choices, and there are no choices."
            raise OptionError(what, option="bins")
        if not isinstance(dataset, Items):
            dataset = items_of(dataset, "dataset", column=images)
        truth = truth_of(
            dataset,
            answer,
            options.get("by"),
            choices=form.choices,
            format=form.format,
            bins=options.get("bins") or BINS,
        )
        asked = {name: value for name, value in options.items() if name not in _OF_SCORES}
        stream = self.stream_map(
            prompt,
            dataset,
            images=shared,
            video=video,
            before_video=before_video,
            names=names,
            read=read,
            read_video=read_video,
            words=words,
            **asked,
        )
        return Stream(evaluated(stream, dataset, truth, is_saved=options.get("save") is not None))
