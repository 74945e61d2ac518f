"""Engine for a model in this process; it generates in the calling thread.

That is the main thread in a notebook: an interrupt stops the model between two tokens and is raised
from the call. A worker thread would go on computing after the interrupt.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import logging
import time
from collections.abc import (
    Callable,
    Container,
    Generator,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from glm4v_magic.checkpoints import Checkpoint, Loaded
from glm4v_magic.checkpoints.encoding import Encoded, EncodedImage, Processor
from glm4v_magic.checkpoints.generation_file import GENERATION_CONFIG
from glm4v_magic.checkpoints.reading import forget_locals
from glm4v_magic.core.conversation import Generation, Request, Usage
from glm4v_magic.core.errors import (
    ConversationError,
    EngineError,
    GenerationInterrupted,
    Glm4vError,
    OutOfMemoryError,
    PlacementError,
)
from glm4v_magic.core.events import EngineEvent, Failed, Finished
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.model import EngineInfo, LoadProgress
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.remarks import PYTHON, remark, worded
from glm4v_magic.core.wording import counted, printable
from glm4v_magic.dispatch.activity import ActivityRecorder, ModelPart, model_parts
from glm4v_magic.dispatch.arrival import verify_bytes, verify_places
from glm4v_magic.dispatch.devices import name_of
from glm4v_magic.dispatch.hooks import dispatch
from glm4v_magic.engines.attempts import Attempts
from glm4v_magic.engines.choosing import Asked, ChoiceScorer
from glm4v_magic.engines.decoding import Chosen, decode
from glm4v_magic.engines.grammars import Grammars
from glm4v_magic.engines.intake import Intake
from glm4v_magic.engines.load_advice import advice_for_load
from glm4v_magic.engines.not_finite import (
    BrokenWeight,
    broken_weight,
    not_finite,
    tensors_of,
)
from glm4v_magic.engines.out_of_memory import is_out_of_memory, out_of_memory
from glm4v_magic.engines.prefill import Vision
from glm4v_magic.engines.prefixes import CacheFacts, PrefixStore, image_digest
from glm4v_magic.engines.prompts import Prompt, PromptImage
from glm4v_magic.engines.row import Row, RowSettings
from glm4v_magic.engines.sampling import checkpoint_config
from glm4v_magic.engines.vocabulary import Vocabulary
from glm4v_magic.planning.decision import Placement
from glm4v_magic.planning.kept import kept_budget
from glm4v_magic.planning.plan import plan
from glm4v_magic.torch_state import torch_state_kept
from glm4v_magic.virtual_gpus import active

__all__ = ["LocalEngine", "load", "require_real_gpus"]

_log = logging.getLogger(__name__)

_BATCH = 8
_LARGE = 10**9


def require_real_gpus(checkpoint: Checkpoint, placement: Placement) -> None:
    """Raise PlacementError if weights go to virtual GPUs that only real ones can hold.

    Those that bitsandbytes makes on a GPU, or reads from files, are tensors of a class of its own;
    those of 8 bits that it makes on the CPU become plain ones as they move.

    Args:
        checkpoint: from `checkpoints.resolve`.
        placement: from `planning.decision.decide`.
    """
    places = (placement.device_map or {}).values()
    if active() is None or all(place == "cpu" for place in places):
        return
    shape = checkpoint.architecture.shape()
    if placement.quantize == "4bit":
        what = f"{checkpoint.name} in 4 bits"
    elif shape.packed is not None:
        what = f"{checkpoint.name}, which was quantised by {shape.scheme},"
    else:
        return
    raise PlacementError(
        f"{what} cannot be put on virtual GPUs: its layers are not PyTorch's own.",
        code="not_on_virtual_gpus",
    )


@torch_state_kept()
def load(
    checkpoint: Checkpoint,
    placement: Placement | None = None,
    *,
    recorder: ActivityRecorder | None = None,
    keep: int | None = None,
    arrived: Callable[[LoadProgress], None] | None = None,
) -> LocalEngine:
    """Load a checkpoint into this process; if that fails or is stopped, nothing stays in memory.

    Args:
        checkpoint: from `checkpoints.resolve`.
        placement: from `planning.decision.decide`; ``None`` is the CPU in float32.
        recorder: records which part of the model is running, while it is watched.
        keep: budget of the prefix cache in bytes; 0 keeps nothing. By default half of what the plan
            leaves free, or 1 GiB without a plan.
        arrived: called after each weight that has arrived; a callback, because transformers loads
            in a loop of its own.

    Raises:
        CheckpointError: if the weights cannot be read.
        PlacementError: if a weight is not on the device of the placement, or virtual GPUs cannot
            hold them.
        OutOfMemoryError: if the weights do not fit.
    """
    placement = placement or Placement()
    require_real_gpus(checkpoint, placement)
    engine: LocalEngine | None = None
    short: str | None = None
    try:
        engine = _load(checkpoint, placement, recorder or ActivityRecorder(), keep, arrived)
    except BaseException as error:
        forget_locals(error)
        if not is_out_of_memory(error):
            raise
        short = str(error)
    finally:
        if engine is None:
            _release_memory()
    if engine is None:
        raise out_of_memory(
            short or "",
            f"while {checkpoint.name} was loaded",
            advice_for_load(checkpoint.architecture.shape(), placement),
        )
    if engine.info.notes:
        _log.warning("%s: %s.", printable(checkpoint.name), "; ".join(engine.info.notes))
    return engine


def _load(
    checkpoint: Checkpoint,
    placement: Placement,
    recorder: ActivityRecorder,
    keep: int | None,
    arrived: Callable[[LoadProgress], None] | None,
) -> LocalEngine:
    loaded = checkpoint.load(
        dtype=getattr(torch, placement.dtype),
        device_map=placement.device_map,
        quantize=placement.quantize,
        arrived=arrived,
        **({"fp8": True} if placement.fp8 else {}),
        **({} if placement.image_size is None else {"image_size": placement.image_size}),
    )
    if placement.device_map is not None:
        if set(placement.device_map.values()) != {"cpu"}:
            # from_pretrained has put accelerate's hooks on every module: these replace them.
            dispatch(loaded.model, placement.device_map, placement.execution_map)
        verify_places(loaded.model, placement.device_map)
    if placement.plan is not None:
        packed = checkpoint.architecture.shape().packed is not None
        verify_bytes(loaded.model, placement.plan, is_quantised=packed)
    return LocalEngine(checkpoint, loaded, placement, recorder, keep)


def _release_memory() -> None:
    """Free memory held by unreachable objects and by torch's allocator."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class LocalEngine:
    """A loaded model; see `engines.Engine`.

    Args:
        checkpoint: checkpoint that was loaded.
        loaded: model and processor.
        placement: placement of the model.
        recorder: records which part of the model is running.
        keep: budget of the prefix cache in bytes.

    Attributes:
        kept: prefix cache.
        grammars: grammars of constraints, compiled for the tokenizer.
        vocabulary: tokens of the model one by one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        loaded: Loaded,
        placement: Placement,
        recorder: ActivityRecorder,
        keep: int | None = None,
    ) -> None:
        self.model = loaded.model
        self.processor: Processor = loaded.processor
        self._inputs = loaded.inputs
        # `generate` would fill what a call leaves open from the model's own config.
        published, self.model.generation_config = self.model.generation_config, GenerationConfig()
        vocabulary: int = self.model.config.get_text_config().vocab_size
        self.defaults, left_out = checkpoint_config(
            published, self.processor.end_token_ids, vocabulary
        )
        self._info = _describe(checkpoint, loaded, placement, left_out)
        self._architecture = checkpoint.architecture
        self.vocabulary = Vocabulary(self.processor.tokenizer, self.processor.told_token_ids)
        self._recorder = recorder
        self._virtual = active() if self.gpus else None
        here = [each for _, each in tensors_of(self.model) if each.device.type == "cpu"]
        self._files = [file for file in loaded.files if any(map(file.holds, here))]
        self._is_bare = False
        budget = kept_budget(None, placement.plan) if keep is None else keep
        self.kept = PrefixStore(budget, is_recurrent=loaded.inputs.is_recurrent)
        self._attempt = Attempts(self.kept)
        self.grammars = Grammars(self.processor.tokenizer, vocabulary, self.defaults.eos_token_id)

    @property
    def info(self) -> EngineInfo:
        """Facts about the model."""
        return self._info

    @property
    def batch_size(self) -> int:
        """Number of rows that are best asked at once: 8, or 1 for a large model on the CPU.

        On the CPU a row of a large model takes minutes by itself, and running out of memory ends
        the process. On GPUs a batch that does not fit is halved.
        """
        large = (self.info.parameters or 0) > _LARGE
        return 1 if large and self.info.devices == ("cpu",) else _BATCH

    def require_room(self, request: Request) -> int:
        """Return the number of tokens that may follow; see `engines.Engine.require_room`."""
        return self._room(self.encode(request), request)

    def seen(self, request: Request) -> tuple[SeenImage, ...]:
        """Return what the model sees of each image; see `engines.Engine.seen`."""
        return self.encode(request).seen

    def encode(self, request: Request) -> Encoded:
        """Encode a request.

        Raises:
            ConversationError: if the model cannot take the messages.
        """
        sampling = request.sampling
        return self.processor.encode(
            request.conversation, thinking=sampling.thinking, effort=sampling.effort
        )

    def _room(self, encoded: Encoded, request: Request) -> int:
        length = encoded.length
        context: int = self.model.config.get_text_config().max_position_embeddings
        room = context - length
        if room < 1:
            error = ConversationError(
                f"The prompt is {length} tokens long, but {self._info.model} holds "
                f"{context} with the answer.",
                "Shorten it, or start a new conversation.",
            )
            *before, latest = request.conversation.messages
            # What was said before takes room, too; alone, it is the images or frames.
            if not any(each.role == "assistant" for each in before):
                if latest.videos:
                    error.advise(code="fewer_frames")
                elif len(latest.images) > 1:
                    error.advise("Ask about fewer images at once.")
            raise error
        return room

    @property
    def is_virtual(self) -> bool:
        """Whether the model is on virtual GPUs."""
        return self._virtual is not None

    @property
    def is_gone(self) -> bool:
        """Whether the model was on virtual GPUs whose block has ended."""
        return self._virtual is not None and active() is not self._virtual

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Enter torch's contexts for a computation that is no answer.

        Raises:
            EngineError: if the model's virtual GPUs are no more, or its weights were overwritten.
            OutOfMemoryError: if memory ran out; the engine can be used again.
        """
        self._require_weights()
        try:
            with torch_state_kept(), _without_gradients():
                yield
        except (RuntimeError, MemoryError) as error:
            text = _of_memory(error)
        else:
            return
        advice = remark("answering_ran_out", ways=(remark("shorter_prompt"),))
        raise self._relieved(out_of_memory(text, "while the model was looked into", advice))

    def _relieved(self, failure: OutOfMemoryError) -> OutOfMemoryError:
        """Return an error after what was kept was dropped, so that the next call has room."""
        self.kept.clear()
        _release_memory()
        return failure

    def bare(self) -> LocalEngine:
        """Return an engine for the same model while others change what it computes.

        It keeps nothing and uses nothing that is kept, calls the modules themselves for every
        token, and does so outside of torch's inference mode, whose tensors cannot be changed later.
        """
        other = copy.copy(self)
        other.kept = PrefixStore(0, is_recurrent=self.kept.is_recurrent)
        other._attempt = Attempts(other.kept)
        other._is_bare = True
        return other

    def features_of(self, images: Sequence[EncodedImage]) -> list[Tensor]:
        """Return the visual tokens of images, (V, H); nothing is kept."""
        return self._inputs.features(images)

    def _require_weights(self) -> None:
        """Raise EngineError if the weights are no more, or no more those that were loaded."""
        if self.is_gone:
            raise EngineError(
                f"{self._info.model} is on virtual GPUs whose `with VirtualGPUs(...)` block has "
                "ended.",
                "Load it again.",
            )
        changed = next((each for each in self._files if each.has_changed), None)
        if changed is not None:
            error = EngineError(
                f"{printable(str(changed.path))} was overwritten after {self._info.model} was "
                "loaded, which reads its weights from there.",
                "Load it again.",
            )
            error.reach = "all"
            raise error

    def stream(
        self,
        requests: Iterable[Request | None],
        at_once: int | None = None,
        withdrawn: Container[int] = (),
    ) -> Generator[EngineEvent, None, None]:
        """Answer `requests`; see `engines.Engine.stream`."""
        self._require_weights()
        # Virtual GPUs draw from the CPU's random state.
        device = self.home if active() is None else "cpu"
        at_once = at_once or self.batch_size
        intake = Intake(requests, at_once, self._row, device, withdrawn)
        interrupted = False
        try:
            yield from self._answer(intake, at_once)
        except KeyboardInterrupt as interrupt:
            forget_locals(interrupt)
            interrupted = True
        except (RuntimeError, MemoryError) as error:
            text = _of_memory(error)
        else:
            return
        # Raised here, new exceptions have no __context__, whose frames would keep the cache; this
        # frame would keep the prompts.
        if interrupted:
            stopped = GenerationInterrupted(_interrupted(intake))
            del intake
            raise stopped
        failure = self._out_of_memory(text, intake.open_rows)
        del intake
        raise self._relieved(failure)

    def _row(self, number: int, request: Request) -> Row:
        encoded = self.encode(request)
        room = self._room(encoded, request)
        with torch_state_kept():
            prompt = self._attempt(lambda: self.prompt(encoded))
        settings = RowSettings(
            self.processor,
            self.defaults,
            self.grammars,
            self.vocabulary,
            self.gpus,
        )
        return Row(settings, number, request, encoded, prompt, room)

    def _answer(self, intake: Intake, at_once: int) -> Iterator[EngineEvent]:
        """Answer all rows."""
        for gpu in self.gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        yield from _looked_ahead(intake)
        steps = self._steps(intake, at_once)
        with self._recording():
            while True:
                yield from _looked_ahead(intake)
                self._require_weights_of(intake)
                # torch's contexts are entered for one step only: between two steps the caller's and
                # the user's code runs.
                with torch_state_kept(), _without_gradients(inference=not self._is_bare):
                    latest = next(steps, None)
                if latest is None:
                    return
                self._recorder.step()
                yield from self._told(latest, intake)

    def _require_weights_of(self, intake: Intake) -> None:
        """Raise what `_require_weights` does, with what open rows have said until then."""
        try:
            self._require_weights()
        except EngineError as error:
            error.generations = _failed(intake.open_rows)
            raise

    def _told(self, latest: Mapping[int, Chosen | None], intake: Intake) -> Iterator[EngineEvent]:
        """Append the latest token of each row and yield the resulting events."""
        now = time.perf_counter()
        for number, token in latest.items():
            row = intake.rows.get(number)
            if row is None:  # it was withdrawn, or has ended at a stop text
                continue
            if token is None:
                failure = self._not_finite(row)
                intake.drop([number])
                self._drop_spoilt(row)
                yield Failed(failure, number)
                continue
            yield from row.take(token, now)
            if row.ending is not None:
                yield Finished(row.generation(), number)
                intake.end(row)
            elif row.texts:
                intake.choose(row)

    def _drop_spoilt(self, row: Row) -> None:
        """Drop features of images and states on the way to NaN; other rows and chats keep theirs.

        What was kept before the row may have led there, and would lead the next one there, too;
        what of it is finite stays, as computed again it would be the same.
        """
        with torch_state_kept(), _without_gradients(inference=not self._is_bare):
            self.kept.drop_spoilt(row.prompt.keys, [each.digest for each in row.prompt.images])

    def _not_finite(self, row: Row) -> EngineError:
        """Return the error of a row whose next token cannot be chosen."""
        new_tokens = len(row.transcript.ids)
        where = "for the first token of the answer"
        if row.texts:
            where = "for the choices"
        elif new_tokens:
            where = f"after {counted(new_tokens, 'token')} of the answer"
        error = self.not_finite(where)
        if new_tokens:
            said = dataclasses.replace(row.generation(), finish_reason="failed")
            error.generations = {row.number: said}
        return error

    def not_finite(self, where: str) -> EngineError:
        """Return the error that the model computes NaN or infinity.

        Args:
            where: for what it does so.
        """
        with torch_state_kept(), _without_gradients():
            return not_finite(self._info, where, self._broken_weight)

    @cached_property
    def _broken_weight(self) -> BrokenWeight | None:
        return broken_weight(self.model)

    def _steps(self, intake: Intake, at_once: int) -> Iterator[dict[int, Chosen | None]]:
        """Decode rows; those that are limited to choices are scored between two steps."""
        quick = (lambda: None) if self._is_bare else self._inputs.decode_step
        scorer = ChoiceScorer(self.model, self.kept, self.vision, at_once)
        decoding = decode(self.model, intake, at_once, self.kept, self.vision, quick)
        with contextlib.closing(decoding):
            yield from _choices(intake, scorer, self._attempt)
            for latest in decoding:
                yield latest
                yield from _choices(intake, scorer, self._attempt)

    @property
    def vision(self) -> Vision:
        """How the model sees images, those kept from earlier included."""
        return Vision(self._features, self._inputs.arguments)

    def prompt(self, encoded: Encoded) -> Prompt:
        """Return an encoded prompt as tensors on the device of the model's input."""
        keys: list[Hashable] = list(encoded.ids)
        images = tuple(PromptImage(_digest(each), each) for each in encoded.images)
        for image in images:
            start, stop = image.encoded.start, image.encoded.stop
            keys[start:stop] = [image.digest] * (stop - start)
        places = self._inputs.positions(encoded).to(self.home)
        ids = torch.tensor([encoded.ids], device=self.home)
        return Prompt(ids, places, tuple(keys), images, self._forks(encoded))

    def _forks(self, encoded: Encoded) -> tuple[int, ...]:
        """Return where the last message begins and where the last image ends."""
        roles = set(self.processor.end_token_ids)
        message = next(
            (at for at in reversed(range(encoded.length)) if encoded.ids[at] in roles), 0
        )
        image = max((each.stop for each in encoded.images), default=0)
        return tuple(sorted({message, image} - {0}))

    def _features(self, images: Sequence[PromptImage]) -> dict[str, Tensor]:
        """Return the visual tokens of images, encoded or kept from earlier."""
        known: dict[str, Tensor] = {}
        missing: dict[str, EncodedImage] = {}
        for image in images:
            features = self.kept.features(image.digest)
            if features is None:
                missing[image.digest] = image.encoded
            else:
                known[image.digest] = features
        if missing:
            encoded = self._inputs.features(list(missing.values()))
            for digest, features in zip(missing, encoded, strict=True):
                known[digest] = features
                self.kept.put_features(digest, features)
        return known

    @property
    def home(self) -> torch.device:
        """Device for ids and pixels; if the first weights are offloaded, their hooks move them."""
        device: torch.device = self.model.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def cache(self) -> CacheFacts:
        """Contents of the prefix cache."""
        return self.kept.facts

    def _out_of_memory(self, text: str, rows: Sequence[Row]) -> OutOfMemoryError:
        new_tokens = min((len(row.transcript.ids) for row in rows), default=0)
        prompt = max((row.encoded.length for row in rows), default=0)
        needed = max(
            (row.encoded.length + row.request.sampling.max_tokens for row in rows), default=0
        )
        if new_tokens:
            doing = f"after {new_tokens} tokens of the answer"
            ways = [remark("fewer_tokens")]
        else:
            doing = f"while the prompt of {prompt} tokens was read" if rows else "before a prompt"
            ways = [remark("shorter_prompt")]
        plan = self._info.plan
        if plan is not None and plan.workload.context is not None:
            if needed > plan.workload.context:
                ways.append(remark("longer_context", needed=needed, context=plan.workload.context))
            else:
                ways.append(remark("larger_reserve"))
        error = out_of_memory(text, doing, remark("answering_ran_out", ways=tuple(ways)))
        error.rows = tuple(row.number for row in rows)
        error.generations = _failed(rows)
        return error

    def close(self) -> None:
        """Drop the model and release its memory."""
        self.model = self.processor = self._inputs = None  # type: ignore[assignment]
        self._files = []
        self.kept.clear()
        _release_memory()

    def _recording(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the recorder records the running part of the model."""
        queued = bool(self.gpus) and active() is None
        return self._recorder.recording(self.model, lambda: self._parts, is_queued=queued)

    @cached_property
    def _parts(self) -> tuple[ModelPart, ...]:
        """Return the parts of the model to record; none under a given device map."""
        made, shape = self._info.plan, self._architecture.shape()
        try:
            if made is None and self._info.devices == ("cpu",):
                made = plan(shape, (), Workload(images=0))
            return () if made is None else model_parts(made, shape)
        except Glm4vError:  # a plan from a file may be of another model; the answer matters more
            return ()

    @property
    def gpus(self) -> list[torch.device]:
        """GPUs of CUDA that the model is on."""
        return [torch.device(name) for name in self._info.devices if name.startswith("cuda")]


def _digest(image: EncodedImage) -> str:
    second = "" if image.second is None else image_digest(image.second)
    return image_digest(image.image) + second


def _choices(
    intake: Intake, scorer: ChoiceScorer, attempt: Attempts
) -> Iterator[dict[int, Chosen | None]]:
    """Yield the tokens of the chosen text of each row that waits for it, as `decode` does."""
    while taken := intake.take_choices():
        is_only = intake.is_empty and len(taken) == len(intake.open_rows) == 1
        asked = attempt(partial(_asked, taken))
        scores = scorer.score(asked, is_only=is_only)
        for (row, _), texts in zip(taken, scores, strict=True):
            if texts is None:
                yield {row.number: None}
                continue
            for token in attempt(partial(row.choose, texts)):
                yield {row.number: token}


def _asked(taken: Sequence[tuple[Row, int]]) -> list[Asked]:
    return [Asked(row.read, row.texts, row.scoring, shared, row.is_kept) for row, shared in taken]


def _looked_ahead(intake: Intake) -> Iterator[Failed]:
    """Take requests, and yield those that cannot be answered."""
    intake.look_ahead()
    while intake.failed:
        yield intake.failed.pop(0)


def _interrupted(intake: Intake) -> dict[int, Generation]:
    """Return the partial generations of the open rows.

    If all have ended, it is that of the last one, whose end the caller may not have taken yet. If
    none has begun, it is an empty one.
    """
    stopped = intake.open_rows or [row for row in (intake.last,) if row is not None]
    if not stopped:
        return {0: Generation("", Usage(None, None, 0), "interrupted")}
    return {row.number: row.generation() for row in stopped}


def _failed(rows: Sequence[Row]) -> dict[int, Generation]:
    """Return what those of the rows have said that have begun, by number."""
    begun = {row.number: row.generation() for row in rows if row.transcript.ids}
    return {
        number: said
        if said.finish_reason != "interrupted"
        else dataclasses.replace(said, finish_reason="failed")
        for number, said in begun.items()
    }


def _of_memory(error: RuntimeError | MemoryError) -> str:
    """Return the text of an error of memory that ran out, and raise any other again.

    What its frames hold, the KV cache above all, is let go.
    """
    if not is_out_of_memory(error):
        raise error
    forget_locals(error)
    return str(error)


def _without_gradients(*, inference: bool = True) -> contextlib.AbstractContextManager[Any]:
    # Views of virtual tensors need the version counters that inference mode does without.
    return torch.inference_mode() if inference and active() is None else torch.no_grad()


def _describe(
    checkpoint: Checkpoint, loaded: Loaded, placement: Placement, left_out: Sequence[str]
) -> EngineInfo:
    model, processor = loaded.model, loaded.processor
    places = set((placement.device_map or {"": "cpu"}).values())
    gpus = sorted(place for place in places if isinstance(place, int))
    return EngineInfo(
        model=checkpoint.name,
        notice=checkpoint.notice,
        max_images=processor.max_images,
        image_size=processor.image_size,
        visual_tokens=processor.num_visual_tokens,
        context=model.config.get_text_config().max_position_embeddings,
        parameters=model.num_parameters(),
        largest_image=placement.image_size,
        least_image=checkpoint.architecture.shape().least_image_tokens,
        dtype=placement.dtype,
        devices=(*(name_of(gpu) for gpu in gpus), *(["cpu"] if "cpu" in places else [])),
        quantize=placement.quantize,
        device_map=placement.device_map,
        plan=placement.plan,
        thinks=processor.thinks,
        takes_video=processor.takes_video,
        efforts=processor.efforts,
        tasks=checkpoint.tasks,
        notes=(
            *(worded(note, PYTHON).rstrip(".") for note in placement.notes),
            *loaded.notes,
            *(f"{GENERATION_CONFIG} has {each}, which is left out" for each in left_out),
        ),
    )
