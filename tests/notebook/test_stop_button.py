"""The Stop button, as a front end and a kernel talk about it; `test_fronts.py` really presses it.

One kernel for all tests. What is sent is what JupyterLab 4 sends: the id of the cell with a cell,
the id of a subshell with a click.
"""

from __future__ import annotations

import os
import re
import threading
import time
from queue import Empty

import ipykernel
import pytest
from jupyter_client.manager import start_new_kernel
from scripted_server import (
    CHAT,
    END,
    MODELS,
    deaf,
    models,
    piece,
    response,
    scripted_server,
    silence,
    stream,
)
from shells import ROOT

LONG = "%%glm4v -o answer --temperature 0 --max-tokens 30000\nWhat is this?"
SHORT = "%%glm4v -o answer --temperature 0 --max-tokens 8\nWhat is this?"
ROWS = "%%glm4v --over numbers -o rows --temperature 0 --fresh --max-tokens 2\nNumber {{item}}?"
WIDGET = "application/vnd.jupyter.widget-view+json"
SECONDS = 120


class FrontEnd:
    """Sends cells and clicks; keeps what a kernel says about them."""

    def __init__(self, client):
        self.client = client
        self.said = []
        self.subshell = self.request("control", "create_subshell_request", {})["subshell_id"]

    def send(self, channel, kind, content, metadata=None, **header):
        message = self.client.session.msg(kind, content, metadata=metadata)
        message["header"].update(header)
        getattr(self.client, f"{channel}_channel").send(message)
        return message["header"]["msg_id"]

    def request(self, channel, kind, content, metadata=None):
        return self.reply(channel, self.send(channel, kind, content, metadata))

    def reply(self, channel, number):
        while True:
            message = getattr(self.client, f"{channel}_channel").get_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") == number:
                return message["content"]

    def start(self, code, cell="a1"):
        self.said = []
        metadata = {"cellId": cell} if cell else {}
        return self.send("shell", "execute_request", {"code": code, "silent": False}, metadata)

    def listen(self, until):
        """Take messages until one of them is what is waited for; return it."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            message = self.client.get_iopub_msg(timeout=SECONDS)
            self.said.append(message)
            if until(message):
                return message
        raise TimeoutError

    def listen_for_button(self, *, until_shown=True):
        """Return the message that makes it; by default once it is shown and can be clicked."""
        button = self.listen(
            lambda said: (
                said["msg_type"] == "comm_open"
                and said["content"]["data"]["state"].get("description") == "Stop"
            )
        )
        if until_shown:
            self.listen(lambda said: WIDGET in said["content"].get("data", {}))
        return button

    def click(self, button):
        click = {"method": "custom", "content": {"event": "click"}}
        return self.send(
            "shell",
            "comm_msg",
            {"comm_id": button["content"]["comm_id"], "data": click},
            subshell_id=self.subshell,
        )

    def listen_for_end(self, number):
        """Wait until all is done that was asked for."""
        self.listen(
            lambda said: (
                said["content"].get("execution_state") == "idle"
                and said["parent_header"].get("msg_id") == number
            )
        )

    def finish(self, number):
        """Wait for the end of a cell; return its reply."""
        self.listen_for_end(number)
        return self.reply("shell", number)

    def run(self, code, cell="a1"):
        return self.finish(self.start(code, cell))

    def models(self, kind):
        """The widgets' models that were opened or closed."""
        return [said["content"]["comm_id"] for said in self.said if said["msg_type"] == kind]

    def displays(self, kind):
        """Data of this kind that was displayed, first forms and updates."""
        shown = ("display_data", "update_display_data")
        datas = [said["content"]["data"] for said in self.said if said["msg_type"] in shown]
        return [data[kind] for data in datas if kind in data]

    def lines(self):
        """What the live region said, one after the other."""
        lines = []
        for said in self.said:
            shown = said["content"].get("data", {})
            html = shown.get("text/html", "") + str(shown.get("state", {}).get("value", ""))
            if said["msg_type"] != "comm_open":  # the first one is in the output as well
                lines += re.findall(r'<div role="status" aria-live="polite"[^>]*>(.*?)</div>', html)
        return lines

    def value(self, expression):
        content = {"code": "", "silent": True, "user_expressions": {"it": expression}}
        return self.request("shell", "execute_request", content)["user_expressions"]["it"]["data"][
            "text/plain"
        ]


@pytest.fixture(scope="module")
def front_end(talkative, tmp_path_factory):
    if ipykernel.version_info < (7,):
        pytest.skip("kernels before ipykernel 7 have no subshells, and no Stop button")
    folder = tmp_path_factory.mktemp("kernel")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "IPYTHONDIR": str(folder)}
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder), env=environment)
    try:
        front_end = FrontEnd(client)
        front_end.interrupt = manager.interrupt_kernel  # as the button of the toolbar does
        load = f"%load_ext glm4v_magic\n%glm4v load {talkative}"
        assert front_end.run(load)["status"] == "ok"
        yield front_end
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_click_stops_the_answer_while_its_cell_runs(front_end):
    number = front_end.start(LONG)
    button = front_end.listen_for_button()
    front_end.listen(lambda said: "text/markdown" in said["content"].get("data", {}))
    front_end.click(button)
    reply = front_end.finish(number)
    assert (reply["status"], reply["ename"]) == ("error", "Stopped")
    assert reply["traceback"] == [
        "Stopped: what was said until then is in _; %glm4v continue carries it on."
    ]
    assert front_end.value("answer.finish_reason") == "'interrupted'"
    assert "stopped by you" in front_end.displays("text/markdown")[-1]
    assert 0 < int(front_end.value("answer.usage.new_tokens")) < 30000
    assert "Stopped." in front_end.displays("text/html")[-1]


OF_ANOTHER = """
import time, ipywidgets
heard = []
button = ipywidgets.Button(description="Stop")
button.on_click(lambda _: heard.append(True))
display(button)
while not heard: time.sleep(0.05)
"""


def test_a_button_of_another_package_is_not_heard_and_the_toolbar_interrupts(front_end):
    """What the doctor says of this version of ipykernel.

    By its code: stop_in_another_way
    """
    number = front_end.start(OF_ANOTHER)
    button = front_end.listen_for_button()
    front_end.click(button)
    if ipykernel.version_info[:2] == (7, 4):
        with pytest.raises(Empty):  # it would say that it is idle once it had heard the click
            front_end.client.get_iopub_msg(timeout=3)
        front_end.interrupt()
        assert front_end.finish(number)["ename"] == "KeyboardInterrupt"
        assert front_end.value("len(heard)") == "1"  # when the cell had ended
    else:
        assert front_end.finish(number)["status"] == "ok"
    front_end.run("ipywidgets.Widget.close_all()")


def test_after_that_the_session_answers(front_end):
    assert front_end.run(SHORT)["status"] == "ok"
    assert front_end.value("answer.usage.new_tokens") == "8"


def test_the_button_and_all_behind_it_are_gone_at_the_end(front_end):
    front_end.run(SHORT)
    assert len(front_end.displays(WIDGET)) == 1
    assert front_end.models("comm_open")
    assert sorted(front_end.models("comm_close")) == sorted(front_end.models("comm_open"))
    # What shows last stays: the replacement comes before the models go.
    kinds = [said["msg_type"] for said in front_end.said]
    replaced = max(n for n, kind in enumerate(kinds) if kind == "update_display_data")
    assert replaced < kinds.index("comm_close")
    assert WIDGET not in front_end.said[replaced]["content"]["data"]
    widgets = "len(__import__('ipywidgets').widgets.widget._instances)"
    assert front_end.value(widgets) == "0"


def test_one_line_says_that_it_starts_and_that_it_is_done(front_end):
    front_end.run(SHORT)
    lines = front_end.displays("text/html")
    assert len(lines) == 2
    assert all('role="status" aria-live="polite"' in line for line in lines)
    assert "is answering…" in lines[0]
    assert "Answered." in lines[1]


def test_an_error_says_that_there_is_no_answer(front_end):
    lines = "%%glm4v -o answer --system '{long}'\nWhat?".replace("{long}", "word " * 20000)
    assert front_end.run(lines)["status"] == "error"
    assert "No answer." in front_end.displays("text/html")[-1]
    assert sorted(front_end.models("comm_close")) == sorted(front_end.models("comm_open"))


@pytest.mark.parametrize(
    ("before", "cell", "status"),
    [
        ("%config Glm4v.stop_button = False", "a1", True),
        ("import sys; sys.modules['ipywidgets'] = None", "a1", True),
        ("", None, False),  # nbclient and papermill name no cell
    ],
    ids=["set to false", "without ipywidgets", "a notebook that nobody watches"],
)
def test_there_is_no_button(front_end, before, cell, status):
    front_end.run(before)
    try:
        assert front_end.run(SHORT, cell)["status"] == "ok"
        assert front_end.models("comm_open") == []
        assert front_end.displays(WIDGET) == []
        assert bool(front_end.displays("text/html")) == status
        assert "8 tokens out" in front_end.displays("text/markdown")[-1]
    finally:
        front_end.run("%config Glm4v.stop_button = True\nimport sys; del sys.modules['ipywidgets']")


def test_there_is_no_button_in_a_captured_cell(front_end):
    front_end.run("%%capture captured\n%glm4v ask 'What?' --temperature 0 --max-tokens 8")
    assert front_end.models("comm_open") == []
    front_end.run("captured.show()")
    assert "8 tokens out" in front_end.displays("text/markdown")[-1]


class TestManyRows:
    @pytest.fixture(autouse=True)
    def _numbers(self, front_end):
        front_end.run("numbers = list(range(16))")

    def test_a_click_stops_them_and_keeps_what_they_say(self, front_end):
        number = front_end.start(ROWS.replace("-tokens 2", "-tokens 4000"))
        button = front_end.listen_for_button()
        # The kernel has nothing more to say until a row is done, which would take minutes.
        front_end.click(button)
        reply = front_end.finish(number)
        assert (reply["status"], reply["ename"]) == ("error", "Stopped")
        assert reply["traceback"] == ["Stopped: no row is answered. Run the cell again to go on."]
        stopped = int(front_end.value("sum(bool(row.text) for row in rows)"))
        assert 0 < stopped <= 8
        assert front_end.value("sum(row.done for row in rows)") == "0"
        table = front_end.displays("text/html")[-2]
        assert table.count("stopped by you") == stopped
        end = "0 of 16 rows answered, 16 not finished; run the cell without --fresh to go on."
        assert table.startswith(f"<div>{end}</div>")
        assert front_end.lines()[-1] == end
        assert WIDGET not in str(front_end.said[-5:])
        assert sorted(front_end.models("comm_close")) == sorted(front_end.models("comm_open"))

    @pytest.mark.parametrize("button", [True, False])
    def test_they_are_not_read_out_one_by_one(self, front_end, button):
        front_end.run(f"%config Glm4v.stop_button = {button}")
        try:
            assert (
                front_end.run(ROWS.replace("--fresh", "--fresh --batch-size 1"))["status"] == "ok"
            )
        finally:
            said = front_end.said
            front_end.run("%config Glm4v.stop_button = True")
        front_end.said = said
        assert len(front_end.displays(WIDGET)) == button
        begin, *between, end = front_end.lines()
        assert begin.endswith(" is answering 16 rows…")
        assert between == [
            f"{begin[:-1]}, {part} done…" for part in ("a quarter", "half", "three quarters")
        ]
        assert end == "16 of 16 rows answered."
        assert front_end.displays("text/html")[-1].count("role=") == 1
        assert sorted(front_end.models("comm_close")) == sorted(front_end.models("comm_open"))

    def test_known_rows_need_neither_line_nor_button(self, front_end):
        front_end.run(ROWS)
        front_end.run(ROWS.replace("--fresh", ""))
        assert front_end.models("comm_open") == []
        assert front_end.lines() == []

    def test_nobody_watches(self, front_end):
        front_end.run(ROWS, cell=None)
        assert front_end.models("comm_open") == []
        assert front_end.lines() == []
        assert "16 of 16 rows answered." in front_end.displays("text/plain")[-1]


BUSY = response(status="503 Service Unavailable", Retry_After=50)
MIDDLE = stream(piece("So"), done=False)


@pytest.fixture(scope="module")
def server():
    with scripted_server() as server:
        server.answer(MODELS, models("m"))
        yield server


class TestSilence:
    """A server says nothing for minutes: a click is heard all the same."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _loaded(cls, front_end, server):
        front_end.run(
            f"%glm4v load {server.url}\nrows = [{{'n': n, 'label': 'yes'}} for n in range(20)]"
        )

    def stop(self, front_end, cell, until=""):
        number = front_end.start(cell)
        button = front_end.listen_for_button()
        if until:
            front_end.listen(lambda said: until in str(said["content"].get("data", {})))
        front_end.click(button)
        reply = front_end.finish(number)
        assert (reply["status"], reply["ename"]) == ("error", "Stopped")
        assert sorted(front_end.models("comm_close")) == sorted(front_end.models("comm_open"))
        return reply["evalue"]

    @pytest.mark.parametrize(
        ("parts", "until", "said"),
        [
            ((silence,), "", "''"),
            ((MIDDLE, silence), "So", "'So'"),
            ((BUSY,), "", "''"),
        ],
        ids=["before the first byte", "in the middle", "it is asked again later"],
    )
    def test_of_an_answer(self, front_end, server, parts, until, said):
        server.answer(CHAT, *parts)
        self.stop(front_end, "%%glm4v -o answer\nWhat?", until)
        assert front_end.value("answer.text") == said

    def test_of_a_server_that_cannot_be_reached(self, front_end):
        with deaf() as url:
            number = front_end.start(f"%glm4v load {url}")
            button = front_end.listen_for_button()
            assert f"Waiting for {url}" in str(front_end.said[-1]["content"])
            front_end.click(button)
            assert front_end.finish(number)["ename"] == "Stopped"

    def test_of_one_whose_button_is_still_being_made(self, front_end):
        slow = "(lambda self, *given, of=ipywidgets.HTML.__init__, **more:"
        slow += " (time.sleep(1), of(self, *given, **more))[1])"
        front_end.run(f"import ipywidgets, time\nusual, made = ipywidgets.HTML.__init__, {slow}")
        front_end.run("ipywidgets.HTML.__init__ = made")
        try:
            with deaf() as url:
                number = front_end.start(f"%glm4v load {url}")
                front_end.click(front_end.listen_for_button(until_shown=False))
                assert front_end.finish(number)["ename"] == "Stopped"
        finally:
            front_end.run("ipywidgets.HTML.__init__ = usual")

    @pytest.mark.parametrize("evaluate", ["", " --evaluate label"])
    def test_of_rows(self, front_end, server, evaluate):
        def first_alone(connection):
            if b"Is it 0?" in server.asked.body:
                connection.sendall(stream(piece("yes"), END))
            else:
                silence(connection)

        server.answer(CHAT, first_alone)
        cell = f"%%glm4v --over rows -o answers --fresh{evaluate}\nIs it {{{{row.n}}}}?"
        said = self.stop(front_end, cell, "1 of 20 rows")
        assert (
            said
            == "1 of 20 rows are answered; they are in _. Run the cell without --fresh to go on."
        )
        rows = "answers.answers" if evaluate else "answers"
        assert front_end.value(f"[row.text for row in {rows}][:2]") == "['yes', None]"

    def test_of_a_comparison(self, front_end, server):
        server.answer(CHAT, silence)
        compared = f'"{server.url},{server.url} temperature=1"'
        self.stop(front_end, f"%%glm4v --compare {compared}\nWhat?")

    def test_of_a_comparison_with_a_server_that_cannot_be_reached(self, front_end, server):
        server.answer(CHAT, stream(piece("yes"), END))
        with deaf() as url:
            cell = f"%%glm4v --compare {server.url},{url} -o compared\nWhat?"
            self.stop(front_end, cell, f"Waiting for {url}")
        assert front_end.value("[each.text for each in compared.columns]") == "['yes', None]"


class TestFailure:
    """A server fails when a click has been heard, and before anybody looks at the button."""

    @pytest.fixture(autouse=True)
    def _seldom_looked_at(self, front_end, server):
        server.answer(MODELS, models("m"))
        front_end.run(f"%glm4v load {server.url}\nrows = [1, 2]")
        front_end.run("import glm4v_magic.engines.silence as at\nusual, at.SECONDS = at.SECONDS, 4")
        yield
        front_end.run("at.SECONDS = usual")
        server.forget()
        server.answer(MODELS, models("m"))

    @pytest.mark.parametrize(
        ("about", "cell", "buttons"),
        [
            (CHAT, "%%glm4v\nWhat?", 1),
            (CHAT, "%%glm4v --over rows --fresh\nIs it {{item}}?", 1),
            (CHAT, "%%glm4v --compare 'temperature=1,temperature=0'\nWhat?", 1),
            (MODELS, "%glm4v load {other}", 1),
            (MODELS, "%%glm4v --compare '{url},{other}'\nWhat?", 2),
        ],
        ids=["an answer", "rows", "settings", "a load", "a load for a comparison"],
    )
    def test_the_click_counts(self, front_end, server, about, cell, buttons):
        heard = threading.Event()

        def fail(connection):
            assert heard.wait(SECONDS)
            connection.sendall(response(status="401 Unauthorized"))

        server.answer(CHAT, stream(piece("yes"), END))
        server.answer(about, fail)
        other = server.url.replace("127.0.0.1", "localhost")
        number = front_end.start(cell.replace("{url}", server.url).replace("{other}", other))
        for _ in range(buttons):
            button = front_end.listen_for_button()
        front_end.listen_for_end(front_end.click(button))
        heard.set()
        reply = front_end.finish(number)
        assert (reply["status"], reply["ename"]) == ("error", "Stopped")
        assert sorted(front_end.models("comm_close")) == sorted(front_end.models("comm_open"))
