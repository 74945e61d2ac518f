"""Which part of the model is at work: what hooks note, and what the views make of it."""

from __future__ import annotations

import itertools
import tracemalloc

import golden
import pytest
import tiny_glm4v
import torch
from following import follow
from html_tree import Tree
from IPython.utils.capture import capture_output
from shells import TINY
from torch import nn
from torch.utils.hooks import RemovableHandle

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm_native.architecture import NativeArchitecture
from glm4v_magic.core.conversation import Request
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dispatch.activity import (
    ActivePart,
    Activity,
    ActivityRecorder,
    ModelPart,
    model_parts,
)
from glm4v_magic.dispatch.hooks import dispatch
from glm4v_magic.engines import local
from glm4v_magic.hardware.readings import Reading
from glm4v_magic.hardware.usable import usable_gpus
from glm4v_magic.notebook import monitor as monitoring
from glm4v_magic.notebook.commands.devices import Drawing
from glm4v_magic.notebook.monitor import Monitor
from glm4v_magic.notebook.render.memory import MemoryRow, MemoryView, memory_bundle, memory_html
from glm4v_magic.notebook.render.plans.activity import activity_html, activity_line
from glm4v_magic.notebook.render.plans.device_map import device_map_html
from glm4v_magic.notebook.widgets.loaded import LoadedWidget
from glm4v_magic.planning.decision import decide
from glm4v_magic.planning.occupancy import Occupancy, OccupiedGPU, Part, occupancy
from glm4v_magic.planning.plan import plan
from glm4v_magic.session import model_in_use
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

GREEDY = Sampling(max_tokens=4, temperature=0)


class Clock:
    """Time that passes when a module says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Work(nn.Module):
    """Takes its time, then lets a test look."""

    def __init__(self, clock, seconds, look=None):
        super().__init__()
        self.clock, self.seconds, self.look = clock, seconds, look

    def forward(self, x):
        self.clock.now += self.seconds
        if self.look is not None:
            self.look()
        return x


class Model(nn.Module):
    """Two modules of one part and one of another, with a second of something else between them."""

    def __init__(self, clock, look=None):
        super().__init__()
        self.clock = clock
        self.first, self.second = Work(clock, 2), Work(clock, 4)
        self.head = Work(clock, 3, look)
        self.table = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.second(self.first(x))
        self.clock.now += 1
        return self.head(x)


LAYERS = ModelPart("cuda:0", "layers 0-1", ("table", "first", "second"))
HEAD = ModelPart("cuda:1", "head", ("head", "missing"))
PARTS = (LAYERS, HEAD)


def watched(clock):
    recorder = ActivityRecorder(clock)
    recorder.is_watched = True
    return recorder


def recording(recorder, model, is_queued=False):
    return recorder.recording(model, lambda: PARTS, is_queued=is_queued)


def hooks(model):
    return [
        name
        for name, module in model.named_modules()
        if module._forward_pre_hooks or module._forward_hooks
    ]


def test_shares_are_of_the_time_since_the_last_reading():
    clock, seen = Clock(), []
    recorder = watched(clock)
    model = Model(clock, look=lambda: seen.append(recorder.read(is_busy=True)))
    clock.now += 50  # at rest: not a part of any share
    with recording(recorder, model):
        model(torch.ones(1))
        clock.now += 5
        seen.append(recorder.read(is_busy=True))
        seen.append(recorder.read(is_busy=True))
        clock.now += 1
        seen.append(recorder.read(is_busy=True))
        model(torch.ones(1))
    assert seen[0].parts == (
        ActivePart("cuda:0", "layers 0-1", 0.6),
        ActivePart("cuda:1", "head", 0.3),
    )
    assert [each.parts for each in seen[1:4]] == [(), (), ()]  # between two steps
    assert [part.share for part in seen[4].parts] == [0.6, 0.3]
    assert not any(each.is_queued for each in seen)


def test_what_hardly_worked_is_told_only_while_it_runs():
    clock, seen = Clock(), []
    recorder = watched(clock)
    model = Model(clock, look=lambda: seen.append(recorder.read(is_busy=True)))
    model.first.seconds, model.second.seconds, model.head.seconds = 0.2, 0.2, 98.6
    with recording(recorder, model):
        model(torch.ones(1))
    assert seen[0].parts == (ActivePart("cuda:1", "head", 0.99),)
    model.first.look = model.head.look
    with recording(recorder, model):
        recorder.read(is_busy=True)
        clock.now += 99.8
        model(torch.ones(1))
    assert seen[1].parts == (ActivePart("cuda:0", "layers 0-1", 0.0),)


def test_after_a_call_nothing_works_however_it_ended():
    clock = Clock()
    recorder = watched(clock)

    def interrupt():
        raise KeyboardInterrupt

    for look in (None, interrupt):
        model = Model(clock, look)
        try:
            with recording(recorder, model):
                assert hooks(model) == ["first", "second", "head"]
                model(torch.ones(1))
        except KeyboardInterrupt:
            assert look is interrupt
        assert hooks(model) == []
        clock.now += 1
        assert recorder.read(is_busy=True) == Activity()


def interrupted(_handle):
    raise KeyboardInterrupt


def test_an_interrupt_while_hooks_are_removed_is_made_good(monkeypatch):
    """The session is at rest then, whatever was noted last, and the next call cleans up."""
    clock, model = Clock(), Model(Clock())
    recorder = watched(clock)
    context = recording(recorder, model)
    context.__enter__()
    model(torch.ones(1))
    monkeypatch.setattr(RemovableHandle, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        context.__exit__(None, None, None)
    monkeypatch.undo()
    assert hooks(model)
    model(torch.ones(1))
    clock.now += 10
    assert recorder.read(is_busy=False) == Activity()
    clock.now += 10
    recorder.is_watched = False
    assert hooks(model)
    with recording(recorder, model):
        assert hooks(model) == []
        assert recorder.read(is_busy=True) == Activity()


def test_without_a_watcher_nothing_is_noted():
    clock, model = Clock(), Model(Clock())
    recorder = ActivityRecorder(clock)
    asked = []
    with recorder.recording(model, lambda: asked.append(1) or PARTS, is_queued=False):
        model(torch.ones(1))
        assert hooks(model) == []
        clock.now += 1
        assert recorder.read(is_busy=True) == Activity()
    assert asked == []


def test_hooks_are_on_for_a_few_steps_after_each_reading():
    """What passes without them is of no share; until more is known, what was known stays."""
    clock = Clock()
    model, recorder = Model(clock), watched(clock)
    noted, seen = [], []

    def step(shares=True):
        model.first.seconds, model.second.seconds = (2, 4) if shares else (0, 0)
        noted.append(bool(hooks(model)))
        model(torch.ones(1))
        recorder.step()

    with recording(recorder, model):
        for _ in range(6):
            step()
        for _ in range(2):
            seen.append(recorder.read(is_busy=True))
        step(shares=False)
        seen.append(recorder.read(is_busy=True))
        for _ in range(6):
            step(shares=False)
        seen.append(recorder.read(is_busy=True))
    assert noted == [True] * 2 + [False] * 5 + [True] * 3 + [False] * 3
    assert seen[0] == seen[1] == seen[2]
    assert [part.share for part in seen[0].parts] == [0.6, 0.3]
    assert [part.share for part in seen[3].parts] == [0.75]  # the head, and a second of no part
    recorder.step()
    assert hooks(model) == []


def test_a_model_whose_steps_are_long_keeps_its_hooks():
    clock = Clock()
    model, recorder = Model(clock), watched(clock)
    with recording(recorder, model):
        for _ in range(12):
            assert hooks(model)
            model(torch.ones(1))
            recorder.read(is_busy=True)
            recorder.step()


def test_nobody_reads_for_long_and_memory_does_not_grow():
    clock, model = Clock(), Model(Clock())
    recorder = watched(clock)
    tracemalloc.start()
    with recording(recorder, model):
        held = []
        for _ in range(2):
            for _ in range(6000):
                model(torch.ones(1))
            held.append(tracemalloc.get_traced_memory()[0])
        assert held[1] - held[0] < held[0] / 10
        clock.now += 1
        recorder.read(is_busy=True)
        # Python itself holds on to 2,000 of the freed pairs, a tenth of the memory.
        assert tracemalloc.get_traced_memory()[0] < held[1] / 5
    tracemalloc.stop()


# In real models.


def ticking():
    """A recorder for which time passes with each look at the clock."""
    return watched(itertools.count().__next__)


def names(seen):
    return {(part.device, part.name) for activity in seen for part in activity.parts}


def answer(engine, recorder):
    events = engine.stream([Request(golden.conversation("image_text"), GREEDY)])
    seen = [recorder.read(is_busy=True) for _ in events]
    assert hooks(engine.model) == []
    assert recorder.read(is_busy=False) == Activity()
    return seen


def test_an_engine_tells_tower_embedding_layers_and_head():
    recorder = ticking()
    engine = local.load(resolve(golden.CHECKPOINT), recorder=recorder)
    prefill, *steps = answer(engine, recorder)
    assert names([prefill]) == {("cpu", "vision"), *names(steps)}
    layers = engine.model.config.num_layers - 1
    assert names(steps) == {("cpu", "embedding"), ("cpu", f"layers 0-{layers}"), ("cpu", "head")}
    assert not any(activity.is_queued for activity in (prefill, *steps))
    model = architecture(str(TINY))
    drawn = occupancy(plan(model.shape(), ()), model.shape())
    shown = {(gpu.device, part.name) for gpu in drawn.gpus for part in gpu.parts}
    assert names([prefill]) <= shown


def test_four_virtual_gpus_take_turns():
    checkpoint, recorder = resolve(golden.CHECKPOINT), ticking()
    with VirtualGPUs("4x1GiB"):
        placement = decide(
            checkpoint.architecture, PlacementOptions(objective="balance"), usable_gpus(None)
        )
        engine = local.load(checkpoint, placement, recorder=recorder)
        seen = answer(engine, recorder)
        drawn = occupancy(placement.plan, checkpoint.architecture.shape())
        engine.close()
    assert {device for device, _ in names(seen)} == {f"cuda:{gpu}" for gpu in range(4)}
    parts = {(gpu.device, p.name) for gpu in drawn.gpus for p in gpu.parts if p.modules}
    assert names(seen) == parts
    assert not any(activity.is_queued for activity in seen)  # computed where the hooks run


def test_real_gpus_are_said_to_work_behind_the_host(monkeypatch):
    recorder = ticking()
    engine = local.load(resolve(golden.CHECKPOINT), recorder=recorder)
    monkeypatch.setattr(local.LocalEngine, "gpus", ["cuda:0"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda gpu: None)
    assert all(activity.is_queued for activity in answer(engine, recorder))


def test_transformers_own_model_is_told_apart_too():
    native = NativeArchitecture("tiny", tiny_glm4v.CONFIG, "config.json")
    made = plan(native.shape(), parse_gpus("4x1GiB"), objective="balance")
    recorder, seen = ticking(), []
    with VirtualGPUs("4x1GiB"):
        model = tiny_glm4v.build()
        dispatch(model, made.device_map(), made.execution_map())
        inputs = {name: value.to("cuda:0") for name, value in tiny_glm4v.prompt().items()}
        parts = model_parts(made, native.shape())
        with recorder.recording(model, lambda: parts, is_queued=False):
            for _ in range(2):
                with torch.no_grad():
                    model(**inputs)
                seen.append(recorder.read(is_busy=True))
    assert len({part.device for part in parts}) > 1
    for each in seen:
        assert names([each]) == {(part.device, part.name) for part in parts}


def test_a_map_that_was_given_has_no_known_parts(tmp_path):
    checkpoint, recorder = resolve(golden.CHECKPOINT), ticking()
    with VirtualGPUs("2x1GiB"):
        given = {"model": 0, "lm_head": 1}
        placement = decide(checkpoint.architecture, PlacementOptions(), usable_gpus(None), given)
        engine = local.load(checkpoint, placement, recorder=recorder)
        assert names(answer(engine, recorder)) == set()


def test_rows_at_once_are_recorded_too():
    recorder = ticking()
    engine = local.load(resolve(golden.CHECKPOINT), recorder=recorder)
    requests = [Request(golden.conversation("image_text"), GREEDY)] * 2
    seen = [recorder.read(is_busy=True) for _ in engine.stream(requests)]
    assert {"embedding", "head"} < {name for _, name in names(seen)}
    assert hooks(engine.model) == []


def test_a_stream_that_was_left_alone_takes_no_hooks_from_the_next():
    recorder = ticking()
    engine = local.load(resolve(golden.CHECKPOINT), recorder=recorder)
    requests = [Request(golden.conversation("image_text"), GREEDY)]
    left, following = engine.stream(requests), engine.stream(requests)
    next(left)
    next(following)
    assert hooks(engine.model)
    left.close()
    assert hooks(engine.model)
    following.close()
    assert hooks(engine.model) == []


# In views.

TOWER = ActivePart("cpu", "vision", 0.62)
WORKING = Activity((TOWER, ActivePart("cpu", "head", 0.3)))


@pytest.mark.parametrize(
    ("activity", "utilization", "said"),
    [
        (Activity(), None, ""),
        (WORKING, None, "working: vision tower on cpu, 62%; norm and head on cpu, 30%"),
        (WORKING, {"cuda:0": 0.5}, "working: vision tower on cpu, 62%; norm and head on cpu, 30%"),
        (
            Activity((ActivePart("cuda:1", "layers 0-19", 0.4),), True),
            {"cuda:0": 0.35, "cuda:1": 0.9, "cuda:2": None},
            "the host is at: layers 0-19 on cuda:1, 40%; GPUs busy: cuda:0 35%, cuda:1 90%",
        ),
        (
            Activity((ActivePart("cuda:1", "layers 0-19", 0.4),), True),
            {},
            "the host is at: layers 0-19 on cuda:1, 40%",
        ),
    ],
)
def test_the_line(activity, utilization, said):
    assert activity_line(activity, utilization) == said


@pytest.fixture(scope="module")
def drawn():
    model = architecture("GLM-4V-9B")
    gpus = parse_gpus("4x16GiB")
    balanced = plan(model.shape(), gpus, objective="balance", split_vision=False)
    return occupancy(balanced, model.shape(), gpus)


def test_the_pieces_that_work_are_marked_in_this_view_alone(drawn):
    parts = (
        ActivePart("cuda:0", "vision", 0.7),
        ActivePart("cuda:2", "layers 12-26", 0.2),
        ActivePart("cuda:2", "layers 0-11", 0.1),  # of another plan: not in this view
    )
    html = activity_html(drawn, Activity(parts), ".glm4v-abc")
    style = html.partition("<style>")[2].partition("</style>")[0]
    rules = [rule.partition("{")[0] for rule in style.split("}") if rule]
    pieces = [rule for rule in rules if rule.startswith(".glm4v-abc .glm4v-segment[data-place=")]
    stages = [rule for rule in rules if rule.startswith(".glm4v-abc [data-stage=")]
    assert sorted([*pieces, *stages]) == sorted(rules)
    assert stages
    places = {rule.partition('"')[2].partition('"')[0] for rule in pieces}
    tree = Tree(device_map_html(drawn))
    marked = [a["title"] for a in tree.all("span", role="img") if a["data-place"] in places]
    assert [title.partition(":")[0] for title in marked] == ["vision", "layers 12-26"]
    assert "border-top:4px solid currentColor" in style  # not by colour alone


def test_the_line_is_there_to_be_read_but_is_not_read_out(drawn):
    for activity in (Activity(), Activity((ActivePart("cuda:0", "vision", 0.7),))):
        tree = Tree(activity_html(drawn, activity, ".x"))
        (line,) = tree.all("div")
        assert line["aria-live"] == "off"
        assert "role" not in line
        assert ("".join(tree.text[1:]) != "") == bool(activity.parts)


def test_names_cannot_be_markup():
    bad = '</style><script>"'
    part = Part("layers", bad, 5, (bad,))
    view = Occupancy(bad, bad, (OccupiedGPU(bad, bad, 10, 10, (part,)),))
    html = activity_html(view, Activity((ActivePart(bad, bad, 1.0),)), ".x")
    Tree(html)
    assert "<script" not in html
    assert "data-place" in html


def test_the_view_of_memory_says_it_while_it_is_true():
    rows = (MemoryRow(Reading("cpu", "host memory", "cpu", 2**30, 1, 1, 1, 2**30 - 3)),)
    view = MemoryView("demo", True, rows, activity=WORKING)
    assert "a call is running, working: vision tower on cpu, 62%;" in memory_html(view)
    assert not any("working" in text for text in memory_bundle(view).values())
    assert view != MemoryView("demo", True, rows)


@pytest.fixture
def loaded(monkeypatch):
    # By this clock parts take as long as what is between them, on a busy computer, too.
    monkeypatch.setattr(
        model_in_use, "ActivityRecorder", lambda: ActivityRecorder(itertools.count().__next__)
    )
    session = Session().load(TINY)
    monitor = Monitor(session.status, session.recorder)
    status = session.status()
    widget = LoadedWidget(monitor, Drawing(architecture(str(TINY)), status), status)
    yield session, monitor, widget
    widget.close()
    assert not monitor.is_running
    session.unload()


def test_the_widget_changes_only_when_something_did(loaded):
    session, _, widget = loaded
    line, bars = widget.live.box.children[1:]
    sets = []
    for content in (line, bars):
        content.observe(lambda change: sets.append(change["owner"]), "value")
    rows = (MemoryRow(Reading("cpu", "host memory", "cpu", 2**30)),)
    still = MemoryView("demo", True, rows)
    working = MemoryView("demo", True, rows, activity=WORKING)
    for view in (still, working, working, still, still):
        widget.refresh(view, session.status())
    assert sets == [line, line]  # the bars, in which the keyboard may be, are not drawn anew


def test_while_an_answer_is_written_the_part_at_work_is_marked(loaded, monkeypatch):
    # Only the readings below: of two in the time between two parts, the second shows none.
    for wait in ("IDLE_SECONDS", "BUSY_SECONDS", "CATCH_UP_SECONDS"):
        monkeypatch.setattr(monitoring, wait, 600)
    session, monitor, widget = loaded
    line = widget.live.box.children[1]
    seen, hooked = [], []

    def look(_text):
        hooked.append(bool(hooks(session.engine.model)))
        monitor.catch_up()
        seen.append(line.value)

    with capture_output() as captured:
        widget.show()
        assert session.recorder.is_watched
        monitor.catch_up()  # the reading that the thread begins with is over
        follow(session.stream("What?", max_tokens=4, temperature=0), text=look)
        widget.cell_ended()
    assert all(hooked)
    assert all("working: " in value and "border-top" in value for value in seen)
    assert "on cpu" not in line.value  # at rest again
    assert hooks(session.engine.model) == []
    assert not any("working" in str(output.data) for output in captured.outputs)

    session.unload()
    follow(session.stream("What?", max_tokens=2, temperature=0), text=look)  # loads it again
    assert "working: " in seen[-1]

    widget.close()
    assert not session.recorder.is_watched
    follow(session.stream("What?", max_tokens=2, temperature=0), text=look)
    assert hooked[-1] is False


def test_what_is_hidden_during_an_answer_is_not_left_marked(loaded):
    session, _, widget = loaded
    line = widget.live.box.children[1]
    widget.live.box._view_count = 1
    rows = (MemoryRow(Reading("cpu", "host memory", "cpu", 2**30)),)
    for leave in (lambda: setattr(widget.live.box, "_view_count", 0), widget.close):
        widget.refresh(MemoryView("demo", True, rows, activity=WORKING), session.status())
        assert "vision tower" in line.value
        leave()
        assert "vision tower" not in line.value
