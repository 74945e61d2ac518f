"""transformers' `generate` in this process and in the calling thread.

The main thread matters: an interrupt then stops the model between two tokens and comes straight
out of `generate`. A worker thread would go on computing after the interrupt.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from glm4v_magic.checkpoints import Checkpoint, Loaded
from glm4v_magic.checkpoints.reading import forget_locals
from glm4v_magic.core.conversation import FinishReason, Generation, Request, Usage
from glm4v_magic.core.errors import (
    ConversationError,
    GenerationInterrupted,
    Glm4vError,
    OutOfMemoryError,
)
from glm4v_magic.core.model import EngineInfo, LoadProgress
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.dispatch.activity import ActivityRecorder, ModelPart, model_parts
from glm4v_magic.dispatch.arrival import verify_bytes, verify_places
from glm4v_magic.dispatch.hooks import dispatch
from glm4v_magic.engines.batched import RowCollector, processors_for
from glm4v_magic.engines.out_of_memory import is_out_of_memory, out_of_memory
from glm4v_magic.planning.decision import Placement
from glm4v_magic.planning.plan import plan
from glm4v_magic.torch_state import torch_state_kept
from glm4v_magic.virtual_gpus import active

__all__ = ["LocalEngine", "load"]


@torch_state_kept()
def load(
    checkpoint: Checkpoint,
    placement: Placement | None = None,
    *,
    recorder: ActivityRecorder | None = None,
    on_progress: Callable[[LoadProgress], None] | None = None,
) -> LocalEngine:
    """Load a checkpoint for use in this process; whatever stops it, nothing stays in memory.

    Args:
        checkpoint: from `checkpoints.resolve`.
        placement: from `planning.decision.decide`; ``None`` is the CPU in float32.
        recorder: notes which part of the model is at work, once somebody watches.
        on_progress: called as weights arrive.

    Raises:
        CheckpointError: if the weights cannot be read.
        PlacementError: if a weight is not where the placement says.
        OutOfMemoryError: if they do not fit after all.
    """
    placement = placement or Placement()
    engine: LocalEngine | None = None
    short: str | None = None
    try:
        engine = _load(checkpoint, placement, recorder or ActivityRecorder(), on_progress)
    except BaseException as error:
        forget_locals(error)
        if is_out_of_memory(error):
            short = str(error)
        else:
            raise
    finally:
        _release_memory()
    if engine is None:
        raise out_of_memory(
            short or "", f"while {checkpoint.name} was loaded", _advice_for_load(placement)
        )
    return engine


def _load(
    checkpoint: Checkpoint,
    placement: Placement,
    recorder: ActivityRecorder,
    on_progress: Callable[[LoadProgress], None] | None,
) -> LocalEngine:
    loaded = checkpoint.load(
        dtype=getattr(torch, placement.dtype),
        device_map=placement.device_map,
        quantize=placement.quantize,
        on_progress=on_progress,
    )
    if placement.device_map is not None:
        if set(placement.device_map.values()) != {"cpu"}:
            # from_pretrained has put accelerate's hooks on every module: these replace them.
            dispatch(loaded.model, placement.device_map, placement.execution_map)
        verify_places(loaded.model, placement.device_map)
    if placement.plan is not None:
        verify_bytes(loaded.model, placement.plan)
    return LocalEngine(checkpoint, loaded, placement, recorder)


def _advice_for_load(placement: Placement) -> Remark:
    ways = [remark("free_memory"), remark("more_gpus")]
    if placement.quantize != "4bit":
        ways.append(remark("four_bit"))
    if placement.plan is None and placement.device_map is not None:
        ways.append(remark("plan_instead_of_map"))
    return remark("loading_ran_out", ways=tuple(ways))


def _release_memory() -> None:
    """Give back what only unreachable objects and torch's allocator hold."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class TokenTextStreamer(BaseStreamer):
    """Collects generated ids and hands out their text, never cutting a character.

    A character may be spread over several tokens; its bytes are kept back until it is whole.

    Args:
        tokenizer: of the model.
        on_text: takes each piece.
        on_step: called after each token.
        carries_on: whether the text goes on with what was said before, whitespace included.
    """

    def __init__(
        self,
        tokenizer: Any,
        on_text: Callable[[str], None],
        on_step: Callable[[], None] | None = None,
        *,
        carries_on: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.on_text = on_text
        self.on_step = on_step
        self.ids: list[int] = []
        self.times: list[float] = []
        self._stream = DecodeStream(skip_special_tokens=True)
        self._prompt_seen = False
        self._started = carries_on

    def put(self, value: Tensor) -> None:
        """Take the prompt (first call) or the latest id of the one row."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self.ids.append(token)
            self.times.append(time.perf_counter())
            self._emit(self._stream.step(self.tokenizer._tokenizer, token))
        if self.on_step is not None:
            self.on_step()

    def _emit(self, piece: str | None) -> None:
        # The model begins an answer with a newline, which belongs to the prompt's form.
        if piece and not self._started:
            piece = piece.lstrip()
            self._started = bool(piece)
        if piece:
            self.on_text(piece)

    def end(self) -> None:
        """Nothing to flush: an incomplete character at the end is not text."""


class LocalEngine:
    """A loaded model; see `engines.Engine`.

    Args:
        checkpoint: what was loaded.
        loaded: the model and its processor.
        placement: where it went.
        recorder: notes which part of the model is at work.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        loaded: Loaded,
        placement: Placement,
        recorder: ActivityRecorder,
    ) -> None:
        self.model = loaded.model
        self.processor = loaded.processor
        # What a call leaves open, `generate` would fill in from the model's own config: sampling
        # values for greedy calls, a length for calls that count new tokens, each with a warning.
        self.defaults: GenerationConfig = self.model.generation_config
        self.model.generation_config = GenerationConfig()
        self._info = _describe(checkpoint, loaded, placement)
        self._architecture = checkpoint.architecture
        self._recorder = recorder

    @property
    def info(self) -> EngineInfo:
        """What is worth knowing about the model."""
        return self._info

    def generate(
        self,
        request: Request,
        on_text: Callable[[str], None],
        on_thinking: Callable[[str], None] | None = None,
    ) -> Generation:
        """Answer `request`; see `engines.Engine.generate`. None of these models thinks."""
        streamer = TokenTextStreamer(
            self.processor.tokenizer,
            on_text,
            self._recorder.step,
            carries_on=bool(request.conversation.unfinished),
        )
        try:
            return self._generate(request, streamer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # The frames it came through hold the key/value cache.
            forget_locals(error)
            text = str(error)
        _release_memory()
        raise self._out_of_memory(text, request, len(streamer.ids))

    def _generate(self, request: Request, streamer: TokenTextStreamer) -> Generation:
        start = time.perf_counter()
        sampling = request.sampling
        inputs, room = self._prepare(request)
        config = generation_config(self.defaults, sampling, room)
        seed = _seed(sampling) if config.do_sample else None
        with _peaks(self._gpus()) as peaks:
            try:
                with (
                    torch_state_kept(),
                    _forked_rng(seed, self._gpus()),
                    _without_gradients(),
                    self._recording(),
                ):
                    self.model.generate(**inputs, generation_config=config, streamer=streamer)
            except KeyboardInterrupt as interrupt:
                forget_locals(interrupt)
                reason: FinishReason = "interrupted"
            else:
                reason = _finish_reason(streamer.ids, config)
        length = inputs["input_ids"].shape[1]
        generation = self._finish(
            request, length, streamer.ids, streamer.times, start, reason, seed, peaks
        )
        if reason == "interrupted":
            raise GenerationInterrupted(generation)
        return generation

    def require_room(self, request: Request) -> int:
        """Return how many tokens may follow; see `engines.BatchEngine.require_room`."""
        length = len(self.processor.prompt_ids(request.conversation))
        context: int = self.model.config.get_text_config().max_position_embeddings
        room = context - length
        if room < 1:
            raise ConversationError(
                f"The prompt is {length} tokens long, but {self._info.model} holds "
                f"{context} with the answer.",
                "Shorten it, or start a new conversation.",
            )
        return room

    def generate_batch(
        self,
        requests: Sequence[Request],
        on_row: Callable[[int, Generation], None],
        on_step: Callable[[], None],
    ) -> None:
        """Answer all `requests` at once; see `engines.BatchEngine.generate_batch`."""
        rows: list[RowCollector] = []
        try:
            self._generate_batch(requests, on_row, on_step, rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            forget_locals(error)
            text = str(error)
        else:
            return
        _release_memory()
        longest = max(requests, key=lambda each: len(each.conversation.messages[-1].text))
        raise self._out_of_memory(text, longest, max(map(len, rows[0].ids)) if rows else 0)

    def _generate_batch(
        self,
        requests: Sequence[Request],
        on_row: Callable[[int, Generation], None],
        on_step: Callable[[], None],
        started: list[RowCollector],
    ) -> None:
        start = time.perf_counter()
        gpus = self._gpus()
        limits = [min(each.sampling.max_tokens, self.require_room(each)) for each in requests]
        inputs = self._inputs(requests)
        lengths: list[int] = inputs["attention_mask"].sum(dim=1).tolist()
        config = generation_config(self.defaults, requests[0].sampling, max(limits))
        config.pad_token_id = self.processor.tokenizer.pad_token_id
        seeds = [_seed(each.sampling) for each in requests] if config.do_sample else None

        def finish(row: int) -> None:
            ids, times = rows.ids[row], rows.times[row]
            reason = _finish_reason(ids, config) if rows.is_complete(row) else "interrupted"
            seed = None if seeds is None else seeds[row]
            peaks = _peak_bytes(gpus)
            on_row(
                row,
                self._finish(requests[row], lengths[row], ids, times, start, reason, seed, peaks),
            )

        def step() -> None:
            self._recorder.step()
            on_step()

        rows = RowCollector(limits, _ends(config), finish, step)
        started.append(rows)
        width = inputs["input_ids"].shape[1]
        # Virtual GPUs draw from the CPU's state.
        device = inputs["input_ids"].device if active() is None else "cpu"
        processors = processors_for(config, [width - length for length in lengths], seeds, device)
        try:
            with torch_state_kept(), _peaks(gpus), _without_gradients(), self._recording():
                self.model.generate(
                    **inputs,
                    generation_config=config,
                    stopping_criteria=StoppingCriteriaList([rows]),
                    logits_processor=processors,
                )
        except KeyboardInterrupt as interrupt:
            forget_locals(interrupt)
            for row in sorted(rows.open):
                finish(row)
            raise

    def _out_of_memory(self, text: str, request: Request, new_tokens: int) -> OutOfMemoryError:
        prompt = len(self.processor.prompt_ids(request.conversation))
        if new_tokens:
            doing = f"after {new_tokens} tokens of the answer"
            ways = [remark("fewer_tokens")]
        else:
            doing = f"while the prompt of {prompt} tokens was read"
            ways = [remark("shorter_prompt")]
        plan, needed = self._info.plan, prompt + request.sampling.max_tokens
        if plan is not None and plan.workload.context is not None:
            if needed > plan.workload.context:
                ways.append(remark("longer_context", needed=needed, context=plan.workload.context))
            else:
                ways.append(remark("larger_reserve"))
        return out_of_memory(text, doing, remark("answering_ran_out", ways=tuple(ways)))

    def close(self) -> None:
        """Drop the model and give its memory back."""
        self.model = self.processor = None
        _release_memory()

    def _prepare(self, request: Request) -> tuple[dict[str, Tensor], int]:
        """Return model inputs where `generate` wants them, and how many tokens may follow."""
        room = self.require_room(request)
        return self._inputs([request]), room

    def _inputs(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        # Offloaded weights are on meta; if the first is, `generate` wants its inputs on the CPU.
        device = "cpu" if self.model.device.type == "meta" else self.model.device
        inputs = self.processor([request.conversation for request in requests])
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def _finish(
        self,
        request: Request,
        length: int,
        ids: list[int],
        times: list[float],
        start: float,
        reason: FinishReason,
        seed: int | None,
        peaks: dict[str, int],
    ) -> Generation:
        images = len(request.conversation.images)
        visual = images * self.processor.num_visual_tokens
        usage = Usage(
            text_tokens=length - visual,
            visual_tokens=visual,
            new_tokens=len(ids),
            time_to_first_token=times[0] - start if times else None,
            decode_seconds=times[-1] - times[0] if times else 0.0,
            peak_bytes=peaks,
        )
        text = self.processor.decode(ids)
        return Generation(
            text=text.rstrip() if request.conversation.unfinished else text.strip(),
            usage=usage,
            finish_reason=reason,
            seed=seed,
        )

    def _recording(self) -> contextlib.AbstractContextManager[None]:
        """Let a watcher know which part of the model is at work within the context."""
        queued = bool(self._gpus()) and active() is None
        return self._recorder.recording(self.model, lambda: self._parts, is_queued=queued)

    @cached_property
    def _parts(self) -> tuple[ModelPart, ...]:
        """What is told apart; nothing under a map that was given, of which no more is known."""
        made, shape = self._info.plan, self._architecture.shape()
        try:
            if made is None and self._info.devices == ("cpu",):
                made = plan(shape, (), Workload(images=0))
            return () if made is None else model_parts(made, shape)
        except Glm4vError:  # a plan from a file may be of another model; the answer matters more
            return ()

    def _gpus(self) -> list[torch.device]:
        return [torch.device(name) for name in self._info.devices if name != "cpu"]


def generation_config(base: GenerationConfig, sampling: Sampling, room: int) -> GenerationConfig:
    """Turn `sampling` into transformers' terms, on top of the checkpoint's own defaults.

    Args:
        base: the checkpoint's generation config, which stays as it is.
        sampling: what was asked.
        room: how many tokens fit behind the prompt.
    """
    config = copy.deepcopy(base)
    config.max_length = None
    config.max_new_tokens = min(sampling.max_tokens, room)
    if sampling.temperature is not None:
        config.do_sample = sampling.temperature > 0
        config.temperature = sampling.temperature or None
    for name in ("top_p", "top_k", "min_p", "repetition_penalty"):
        value = getattr(sampling, name)
        if value is not None:
            setattr(config, name, value)
    if not config.do_sample:  # transformers warns about sampling values that greedy ignores
        config.temperature = config.top_p = config.top_k = config.min_p = None
    return config


def _finish_reason(ids: list[int], config: GenerationConfig) -> FinishReason:
    return "stop" if ids and ids[-1] in _ends(config) else "length"


def _ends(config: GenerationConfig) -> list[int]:
    ends = config.eos_token_id
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


def _seed(sampling: Sampling) -> int:
    # A seed from the operating system: drawing one from torch would move the user's own state.
    return sampling.seed if sampling.seed is not None else secrets.randbelow(2**31)


def _without_gradients() -> contextlib.AbstractContextManager[Any]:
    # Views of virtual tensors need the version counters that inference mode does without.
    return torch.inference_mode() if active() is None else torch.no_grad()


@contextlib.contextmanager
def _forked_rng(seed: int | None, gpus: list[torch.device]) -> Iterator[None]:
    """Sample from `seed` and leave the user's random state untouched."""
    if seed is None:
        yield
        return
    # Virtual GPUs draw from the CPU's state.
    with torch.random.fork_rng(devices=gpus if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _peaks(gpus: list[torch.device]) -> Iterator[dict[str, int]]:
    """Fill the yielded mapping with the peak of allocated bytes per GPU when the context ends."""
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    peaks: dict[str, int] = {}
    yield peaks
    peaks.update(_peak_bytes(gpus))


def _peak_bytes(gpus: list[torch.device]) -> dict[str, int]:
    return {str(gpu): torch.cuda.max_memory_allocated(gpu) for gpu in gpus}


def _describe(checkpoint: Checkpoint, loaded: Loaded, placement: Placement) -> EngineInfo:
    model, processor = loaded.model, loaded.processor
    places = set((placement.device_map or {"": "cpu"}).values())
    gpus = sorted(place for place in places if isinstance(place, int))
    return EngineInfo(
        model=checkpoint.name,
        notice=checkpoint.notice,
        max_images=processor.max_images,
        image_size=(processor.image_size, processor.image_size),
        visual_tokens=processor.num_visual_tokens,
        context=model.config.get_text_config().max_position_embeddings,
        parameters=model.num_parameters(),
        dtype=placement.dtype,
        devices=(*(f"cuda:{gpu}" for gpu in gpus), *(["cpu"] if "cpu" in places else [])),
        quantize=placement.quantize,
        device_map=placement.device_map,
        plan=placement.plan,
        thinks=False,
    )
