"""The widgets, without a front end: what controls do, and what stays when they close."""

from __future__ import annotations

import random
import re
import threading
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import ipywidgets
import pytest
from IPython.utils.capture import capture_output
from shells import TINY, open_widgets

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.notebook.command_line import parse, split
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.commands.devices import make_tool
from glm4v_magic.notebook.commands.plan import as_options, placement_options
from glm4v_magic.notebook.live.busy import hear_while_busy
from glm4v_magic.notebook.widgets.live import Live, on_main_thread
from glm4v_magic.notebook.widgets.memory import MemoryWidget
from glm4v_magic.planning.files import plan_from_json

NINE_B = architecture("GLM-4V-9B")


@pytest.fixture
def context(shell):
    return shell.magics_manager.registry["Glm4vMagics"].context


@pytest.fixture
def tool(context):
    made = []

    def make(name="GLM-4V-9B", **options):
        options = {"gpus": "4x16GiB", **options}
        made.append(make_tool(context, name, architecture(name), PlacementOptions(**options)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def html(tool):
    return " ".join(
        child.value for child in tool.live.box.children if isinstance(child, ipywidgets.HTML)
    )


@pytest.mark.parametrize(
    ("control", "value", "option", "expected"),
    [
        ("gpus", "24+16+12GiB", "gpus", "24+16+12GiB"),
        ("context", 2048, "context", 2048),
        ("images", 0, "images", 0),
        ("objective", "fewest", "objective", "fewest"),
        ("dtype", "float16", "dtype", "float16"),
        ("quantize", "4bit", "quantize", "4bit"),
        ("split_vision", "whole if it fits", "split_vision", False),
        ("to", "cuda:3", "pin", (("vision", 3),)),
    ],
)
def test_every_control_changes_the_options_and_the_view(tool, control, value, option, expected):
    tool = tool()
    before, shown = tool.view, html(tool)
    tool.controls[control].value = value
    assert getattr(tool.options, option) == expected
    assert tool.view != before
    assert html(tool) != shown


def test_offloading_makes_it_fit(tool):
    tool = tool(gpus="2x9GiB")
    assert "does not fit" in tool.view.problem
    assert tool.controls["load"].disabled
    assert tool.controls["check"].disabled
    tool.controls["offload"].value = True
    assert tool.view.problem == ""
    assert not tool.controls["load"].disabled
    assert "visit from host memory" in html(tool)


def test_the_same_plan_as_a_line_and_as_json(tool):
    tool = tool(max_memory=(15.0, 14.0, 15.0, 15.0), reserve=0.25)
    tool.controls["context"].value = 4096
    tool.controls["to"].value = "cuda:1"
    shown = html(tool)
    line = shown.partition('cursor:copy">')[2].partition("</code>")[0]
    _, command, *words = split(line)
    assert as_options(placement_options(parse(COMMANDS[command], words))) == tool.options
    text = shown.partition("<pre")[2].partition(">")[2].partition("</pre>")[0]
    plan = plan_from_json(unescape(text))
    assert plan.workload.context == 4096
    assert "vision" in next(stage for stage in plan.stages if stage.gpu == 1).units


def test_pins_are_remembered_unit_by_unit(tool):
    tool = tool(pin=(("vision", 2),))
    unit, gpu = tool.controls["pin"], tool.controls["to"]
    assert (unit.value, gpu.value) == ("vision", "cuda:2")
    unit.value = "head"
    assert gpu.value == "any GPU"
    assert tool.options.pin == (("vision", 2),)
    gpu.value = "cuda:3"
    assert dict(tool.options.pin) == {"vision": 2, "head": 3}
    unit.value = "vision"
    assert gpu.value == "cuda:2"
    gpu.value = "any GPU"
    assert tool.options.pin == (("head", 3),)
    tool.controls["gpus"].value = "2x24GiB"  # the pin is kept, and said to be wrong
    assert "'head' is pinned to cuda:3, which is not there" in tool.view.problem


@pytest.mark.parametrize(
    ("gpus", "said"), [("2x", "Cannot read"), ("<b>", "Cannot read"), ("1x8GiB", "does not fit")]
)
def test_what_is_wrong_is_said_and_no_old_number_stays(tool, gpus, said):
    tool = tool()
    tool.controls["gpus"].value = gpus
    assert said in tool.view.problem
    shown = html(tool)
    assert "<b>" not in shown
    shown, _, faded = shown.partition("opacity:0.45")  # the drawing stays where it is
    assert "15.52 GiB" not in shown
    assert "15.52 GiB" in faded or gpus == "1x8GiB"
    assert "%glm4v load" not in shown
    assert tool.controls["load"].disabled
    tool.controls["gpus"].value = "4x16GiB"
    assert tool.view.problem == ""


def test_the_table_unfolds_and_leaves_the_outcome(tool):
    tool = tool("demo", gpus="2x1GiB", context=128)
    tool.controls["check"].click()
    outcome = tool.outcome
    tool.controls["table"].value = True
    assert "<details open>" in html(tool)
    assert tool.outcome == outcome != ""
    tool.controls["context"].value = 256
    assert tool.outcome == ""


def test_check_runs_the_plan_dry_and_stays(tool):
    tool = tool("demo", gpus="2x1GiB", context=128)
    with capture_output() as captured:
        tool.show()
        tool.controls["check"].click()
    assert 'class="glm4v-dry-run"' in tool.outcome
    assert not tool.controls["check"].disabled
    assert 'class="glm4v-dry-run"' in captured.outputs[-1].data["text/html"]
    assert "Loaded" not in captured.outputs[-1].data["text/plain"]


def test_load_loads_or_says_why_not(tool, context):
    tool = tool(str(TINY), gpus="cpu")
    context.session.unload()
    tool.controls["load"].click()
    assert f"Loaded {TINY}" in tool.outcome.replace("<wbr>", "")  # where lines may end
    assert context.session.status().choice.model == str(TINY)
    assert context.session.status().choice.options == tool.options
    tool.controls["gpus"].value = "2x1GiB"
    tool.controls["load"].click()
    assert "torch sees none here" in tool.outcome
    assert 'role="alert"' in tool.outcome
    assert context.session.status().info is not None
    assert not tool.controls["load"].disabled


def test_an_interrupt_and_a_bug_leave_the_tool_in_use(tool, context, monkeypatch):
    tool = tool(str(TINY), gpus="cpu")
    for error, said in (
        (KeyboardInterrupt(), "Stopped."),
        (ValueError("<odd>"), "ValueError: &lt;odd"),
    ):

        def fails(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr(context.session, "stream_load", fails)
        tool.controls["load"].click()
        assert said in tool.outcome
        assert not tool.controls["load"].disabled


def test_a_control_that_changes_meanwhile_makes_an_outcome_obsolete(tool):
    """The report of a dry run is of its plan; that something was loaded stays true."""
    tool = tool("demo", gpus="2x1GiB", context=128)
    check, load, gpus = (tool.controls[name] for name in ("check", "load", "gpus"))

    def work(_options):
        gpus.value = "1x8MiB"
        assert "does not fit" in tool.view.problem
        gpus.value = "3x1GiB"
        assert check.disabled
        assert load.disabled  # one thing at a time
        load.click()
        gpus.value = ending
        return {"text/plain": "done", "text/html": "<p>done</p>"}

    def loads(options):
        yield work(options)

    tool.draft.check, tool.draft.load = work, loads
    for button, ending, said in (
        (check, "3x1GiB", ""),
        (load, "2x1GiB", "<p>done</p>"),
        (check, "2x1GiB", "<p>done</p>"),
        (load, "1x8MiB", "<p>done</p>"),
        (check, "2x", ""),  # cannot be read: the options stay as they were
    ):
        button.click()
        assert tool.outcome == said
        assert check.disabled == load.disabled == (ending in ("1x8MiB", "2x"))


def test_a_bug_in_planning_leaves_no_old_view(tool, monkeypatch):
    tool = tool()

    def fails(options):
        raise ZeroDivisionError("<odd>")

    tool.draft.draw = fails
    tool.controls["context"].value = 2048
    assert tool.view.problem == "ZeroDivisionError: <odd>"
    assert tool.view.gpus == ()
    assert "<odd>" not in html(tool)
    assert tool.controls["load"].disabled


def test_what_an_error_says_cannot_steer_a_terminal(tool):
    tool = tool("demo", gpus="2x1GiB", context=128)

    def fails(options):
        raise ValueError("red \x1b[31m <b>")

    tool.draft.check = fails
    with capture_output() as captured:
        tool.show()
        tool.controls["check"].click()
    shown = captured.outputs[-1].data
    assert "red [31m" in shown["text/plain"]
    assert "\x1b" not in shown["text/plain"] + shown["text/html"]
    assert "<b>" not in shown["text/html"]


def test_from_another_thread_work_waits_for_the_main_one():
    done, queued = [], []
    shell = SimpleNamespace(
        kernel=SimpleNamespace(io_loop=SimpleNamespace(add_callback=queued.append))
    )

    def work():
        done.append(threading.current_thread())

    thread = threading.Thread(target=on_main_thread, args=(shell, work))
    thread.start()
    thread.join()
    assert (done, queued) == ([], [work])
    on_main_thread(shell, work)
    assert done == [threading.main_thread()]


def test_controls_are_heard_while_a_cell_runs():
    """ipykernel notes in a comm which loop sent last; see `hear_while_busy`."""
    button = ipywidgets.Button()
    button.comm._reply_subshell_id = None
    hear_while_busy(button, button)
    assert "_reply_subshell_id" not in vars(button.comm)
    button.close()
    hear_while_busy(button)  # without a comm there is nothing to do


# Live and static.


def two_faces():
    calls, text = [], ["one"]
    content = ipywidgets.HTML("live")
    live = Live(
        [ipywidgets.HBox([content])],
        lambda: {"text/plain": text[0], "text/html": f"<p>{text[0]}</p>"},
        on_hidden=lambda: calls.append("hidden"),
        on_shown=lambda: calls.append("shown"),
    )
    return live, text, calls


def test_the_static_view_is_updated_once_for_each_change():
    live, text, _ = two_faces()
    live.refresh_twin()  # not before it is shown
    with capture_output() as captured:
        live.show()
        live.refresh_twin()
        text[0] = "two"
        live.refresh_twin()
        live.refresh_twin()
        text[0] = "three"
        live.close()
        live.close()
    widget, *twins = [output.data for output in captured.outputs]
    assert widget["text/plain"] == ""
    assert "application/vnd.jupyter.widget-view+json" in widget
    assert [twin["text/plain"] for twin in twins] == ["one", "two", "three"]
    assert "<p>three</p>" in twins[-1]["text/html"]
    places = {output.transient.get("display_id") for output in captured.outputs[1:]}
    assert len(places) == 1


def test_the_static_view_hides_behind_its_own_widget_only():
    (one, _, _), (other, _, _) = two_faces(), two_faces()
    with capture_output() as captured:
        one.show()
        other.show()
    rules = [live.box.children[0].value for live in (one, other)]
    classes = [live.box._dom_classes[0] for live in (one, other)]
    twins = [o.data["text/html"] for o in captured.outputs if "<p>" in o.data["text/html"]]
    for index in (0, 1):
        assert f'class="{classes[index]}-twin"' in twins[index]
        assert f".{classes[index]}-twin{{display:none}}" in rules[index]
        assert classes[1 - index] not in rules[index]
        (one, other)[index].close()


def test_it_hears_when_the_last_page_lets_go_and_when_one_comes_back():
    live, _, calls = two_faces()
    assert live.box._view_count == 0
    for count in (1, 2, 1, 0, 1):
        live.box._view_count = count
    assert calls == ["shown", "hidden", "shown"]
    live.close()
    assert calls == ["shown", "hidden", "shown", "hidden"]


def test_many_widgets_closed_in_any_order_leave_nothing(context, tool):
    before = set(open_widgets())
    with capture_output():
        views = [MemoryWidget(context.monitor) for _ in range(5)]
        for view in views:
            view.show()
        plan = tool(gpus="2x24GiB")
        assert len(set(open_widgets()) - before) > 40
        random.Random(0).shuffle(views)
        plan.close()
        for view in views:
            assert context.monitor.is_running
            view.close()
    assert not context.monitor.is_running
    assert set(open_widgets()) - before == set()


def test_only_a_view_on_a_page_waits_for_the_news(context, monkeypatch):
    asked = []
    monkeypatch.setattr(context.monitor, "catch_up", lambda: asked.append(1))
    with capture_output():
        shown, hidden = MemoryWidget(context.monitor), MemoryWidget(context.monitor)
        for widget in (shown, hidden):
            widget.show()
            widget.live.box._view_count = 1
        hidden.live.box._view_count = 0
        hidden.cell_ended()
        assert len(asked) == 0
        shown.cell_ended()
        assert len(asked) == 1
        hidden.live.box._view_count = 1
        hidden.cell_ended()
        assert len(asked) == 2

        def interrupted():
            asked.append(1)
            raise KeyboardInterrupt

        monkeypatch.setattr(context.monitor, "catch_up", interrupted)
        context.open(shown)
        with capture_output() as said:
            context.shell.run_cell("1")
        assert len(asked) == 3
        assert "callback" not in said.stdout  # IPython would show a traceback of ours
        context.close()
        for widget in (shown, hidden):
            widget.close()
    assert not context.monitor.is_running


def test_a_memory_widget_changes_only_when_something_did(context):
    view = context.monitor.view()
    widget = MemoryWidget(context.monitor)
    sets = []
    (content,) = widget.live.box.children[1:]
    content.observe(sets.append, "value")
    widget.refresh(view, None)
    first = len(sets)
    widget.refresh(view, None)
    assert len(sets) == first
    widget.refresh(replace(view, busy=True), None)
    assert len(sets) == first + 1
    widget.close()
    widget.refresh(view, None)
    assert len(sets) == first + 1


# Views that fail.


class Failing:
    """A view whose steps fail where they are told to."""

    def __init__(self, *failing):
        self.failing, self.done = failing, []

    def _step(self, name):
        self.done.append(name)
        if name in self.failing:
            raise EngineError("demo is no longer loaded.", "Ask again.")

    def show(self):
        self._step("show")

    def cell_ended(self):
        self._step("cell_ended")

    def close(self):
        self._step("close")


def test_a_view_that_cannot_be_shown_is_closed_and_later_cells_know_nothing_of_it(context, run):
    failing = Failing("show", "close")
    with pytest.raises(EngineError, match="no longer loaded"):
        context.open(failing)
    assert (failing.done, context.views) == (["show", "close"], [])
    assert run("1+1").endswith(": 2\n")
    assert failing.done == ["show", "close"]


def test_a_view_that_fails_at_the_end_of_a_cell_is_told_once_and_given_up(context, run):
    failing, well = Failing("cell_ended", "close"), Failing()
    context.open(failing)
    context.open(well)
    closed = "A view of an earlier cell was closed: demo is no longer loaded. Ask again.\n"
    assert run("1+1").endswith(f": 2\n{closed}")
    assert run("2+2").endswith(": 4\n")
    assert failing.done == ["show", "cell_ended", "close"]
    assert well.done == ["show", "cell_ended", "cell_ended"]
    assert context.views == [well]


def test_a_view_that_cannot_be_closed_keeps_no_extension_from_being_reloaded(context, run):
    well, failing = Failing(), Failing("close")
    context.open(well)
    context.open(failing)
    assert run("%reload_ext glm4v_magic") == ""
    assert well.done[-1] == failing.done[-1] == "close"
    assert "UsageError" not in run("%glm4v")


def test_callbacks_of_ours_have_a_short_repr(context, shell):
    context.open(Failing())
    ours = [
        repr(each)
        for each in shell.events.callbacks["post_run_cell"]
        if "glm4v" in type(getattr(each, "__self__", None)).__module__
    ]
    assert len(ours) == 2
    assert all(len(each) < 300 for each in ours)


def test_of_a_widget_without_a_static_view_nothing_is_shown(context):
    def bundle():
        raise EngineError("demo is no longer loaded.")

    before = set(open_widgets())
    live = Live([ipywidgets.HTML("live")], bundle, on_hidden=lambda: None, on_shown=lambda: None)
    with capture_output() as captured:
        with pytest.raises(EngineError):
            live.show()
        live.close()
    assert captured.outputs == []
    assert set(open_widgets()) == before


def test_a_widget_is_closed_even_if_its_static_view_fails_then():
    before = set(open_widgets())
    live, text, _ = two_faces()
    with capture_output():
        live.show()
        text.clear()
        with pytest.raises(IndexError):
            live.close()
    assert set(open_widgets()) == before


def test_a_pin_is_taken_back_by_its_button(tool):
    tool = tool()
    before = tool.options
    tool.controls["to"].value = "cuda:3"
    assert tool.options.pin == (("vision", 3),)
    (button,) = tool.pins
    assert button.tooltip == "take back: vision on cuda:3"
    button.click()
    assert tool.options == before
    assert tool.pins == ()


def test_the_plan_of_the_tool_is_taken_as_a_line_and_as_json_for_map(tool, run, tmp_path):
    tool = tool("demo", gpus="2x1GiB", objective="balance")
    shown = next(
        child.value
        for child in tool.live.box.children
        if isinstance(child, ipywidgets.HTML) and "the plan as JSON, for --map" in child.value
    )
    text = unescape(re.sub(r"<[^>]*>", "\n", shown))
    (line,) = re.findall(r"%glm4v load .*", text)
    plan = text[text.index("{") : text.rindex("}") + 1]
    (tmp_path / "plan.json").write_text(plan)
    checked = run("%glm4v check demo --gpus 2x1GiB --map plan.json")
    assert checked == run(line.replace("load", "check", 1))
    assert "It would run" in checked
