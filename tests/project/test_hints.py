"""That `hints` finds advice in every form in which the package may give it, and nothing else."""

from __future__ import annotations

from textwrap import dedent

import hints
import pytest

FOUND = {
    "a constant": 'raise OptionError("Why.", "Do this.")',
    "a keyword": 'raise OptionError("Why.", hint="Do this.")',
    "two pieces": 'raise OptionError("Why.", "Do " "this.")',
    "a sum": 'raise OptionError("Why.", "Do " + "this.")',
    "an error of a module": 'raise errors.OptionError("Why.", "Do this.")',
    "another place": 'Finding("GPUs", "warn", "none", "Why.", "Do this.")',
    "a next step": 'Finding("GPUs", "warn", "none", next_step="Do this.")',
    "advice that is replaced": 'error.advise("Do this.")',
    "an error that is kept": 'error = OptionError("Why.", "Do this.")',
    "a reader of files": 'text_of(path, "What", OptionError, "Do this.")',
    "stripped": 'raise OptionError("Why.", "Do this.".strip())',
    "a module's constant": """
        THIS = "Do this."
        raise OptionError("Why.", THIS)
        """,
    "a module's constant that a function names": """
        THIS = "Do this."
        def act():
            raise OptionError("Why.", THIS)
        """,
    "a variable": """
        def act():
            step = "Do this."
            raise OptionError("Why.", step)
        """,
    "a variable of several": """
        def act():
            why, step = "Why.", "Do this."
            raise OptionError(why, step)
        """,
    "a variable of one of several": """
        def act(bad):
            why, step = ("Bad.", "Do this.") if bad else ("Worse.", "")
            raise OptionError(why, step)
        """,
    "a variable that is added to": """
        def act():
            step = ""
            step += "Do this."
            raise OptionError("Why.", step)
        """,
    "a variable with its type": """
        def act():
            step: str = "Do this."
            raise OptionError("Why.", step)
        """,
    "a variable in a condition": """
        def act():
            if step := "Do this.":
                raise OptionError("Why.", step)
        """,
    "a variable in a block": """
        def act():
            try:
                work()
            except ValueError:
                step = "Do this."
            raise OptionError("Why.", step)
        """,
    "what a function returns": """
        def step():
            return "Do this."
        raise OptionError("Why.", step())
        """,
    "what a function returns in a variable": """
        def step(bad):
            found = "Do this."
            return found
        raise OptionError("Why.", step(1))
        """,
    "what a method returns": """
        class A:
            def step(self):
                return "Do this."
            def act(self):
                raise OptionError("Why.", self.step())
        """,
    "what a function yields": """
        def steps():
            yield "Do this."
        raise OptionError("Why.", " ".join(steps()))
        """,
    "what callers give": """
        def act(step):
            raise OptionError("Why.", step)
        act("Do this.")
        """,
    "what callers give by name": """
        def act(*, step):
            raise OptionError("Why.", step)
        act(step="Do this.")
        """,
    "what callers give to a method": """
        class A:
            def act(self, step):
                raise OptionError("Why.", step)
            def other(self):
                self.act("Do this.")
        """,
    "what a caller's variable is": """
        def act(step):
            raise OptionError("Why.", step)
        def other():
            this = "Do this."
            act(this)
        """,
    "an entry of a table": """
        TABLE = {1: "Do this."}
        raise OptionError("Why.", TABLE[key])
        """,
    "an entry of a table that may lack it": """
        TABLE = {1: "Do this."}
        raise OptionError("Why.", TABLE.get(key))
        """,
    "what stands for an entry": """
        TABLE = {}
        raise OptionError("Why.", TABLE.get(key, "Do this."))
        """,
    "parts that are joined": 'raise OptionError("Why.", " ".join(["Do this."]))',
    "parts that are made": 'raise OptionError("Why.", " ".join("Do this." for each in some))',
    "an entry by its number": """
        STEPS = ("Why.", "Do this.")
        raise OptionError(STEPS[0], STEPS[1])
        """,
    "a part of a text": 'raise OptionError("Why.", "Do this."[:80])',
    "an entry of a list that is gone through": """
        STEPS = ["Do this."]
        def act():
            for step in STEPS:
                raise OptionError("Why.", step)
        """,
    "a column of a table that is gone through": """
        TABLE = (("a", "Why.", "Do this."),)
        def act():
            for letter, why, step in TABLE:
                raise OptionError(why, step)
        """,
    "a column within a column": """
        TABLE = [("a", ("Why.", "Do this."))]
        def act():
            for letter, (why, step) in TABLE:
                raise OptionError(why, step)
        """,
    "a column of tables that are joined": """
        SOME = [("Why.", "Do this.")]
        def act():
            for why, step in (*SOME, ("Or why.", "")):
                raise OptionError(why, step)
        """,
    "an item of a dict that is gone through": """
        TABLE = {"Why.": "Do this."}
        def act():
            for why, step in TABLE.items():
                raise OptionError(why, step)
        """,
    "a column of the items of a dict": """
        TABLE = {"a": ("Why.", "Do this.")}
        def act():
            for letter, (why, step) in TABLE.items():
                raise OptionError(why, step)
        """,
    "a value of a dict that is gone through": """
        TABLE = {"Why.": "Do this."}
        def act():
            for step in TABLE.values():
                raise OptionError("Why.", step)
        """,
    "the first of those that suit": """
        TABLE = [("Why.", "Do this.")]
        raise OptionError("Why.", " ".join(step for why, step in TABLE))
        """,
    "an entry that is a pair": """
        TABLE = {"a": ("Why.", "Do this.")}
        def act():
            why, step = TABLE.get(letter, ("Or why.", "Do this."))
            raise OptionError(why, step)
        """,
    "a pair that a function yields": """
        def failures():
            yield "Why.", "Do this."
        def act():
            for why, step in failures():
                raise OptionError(why, step)
        """,
    "another function of two": 'raise OptionError("Why.", step or "Do this.")',
    "a pair that is spread": 'raise OptionError(*("Why.", "Do this."))',
    "a variable that is spread": """
        def act():
            failure = ("Why.", "Do this.")
            raise OptionError(*failure)
        """,
    "what a function returns, spread": """
        def failure():
            return "Why.", "Do this."
        raise OptionError(*failure())
        """,
    "what a function returns for a variable, spread": """
        def failure():
            step = "Do this."
            return "Why.", step
        def act():
            found = failure()
            raise OptionError(*found)
        """,
    "an entry of a table, spread": """
        TABLE = {1: ("Why.", "Do this.")}
        Finding("GPUs", "warn", "none", *TABLE[key])
        """,
    "a step that is spread behind the reason": """
        STEPS = ("Do this.",)
        raise OptionError("Why.", *STEPS)
        """,
    "a constant of another module": """
        from glm4v_magic.words.other import THIS
        raise OptionError("Why.", THIS)
        """,
    "a constant by another name": """
        from glm4v_magic.words.other import THIS as STEP
        raise OptionError("Why.", STEP)
        """,
    "a constant in another module": """
        from glm4v_magic.words import other
        raise OptionError("Why.", other.THIS)
        """,
    "a function of another module": """
        from glm4v_magic.words.other import step
        raise OptionError("Why.", step(1))
        """,
    "a pair that a function of another module returns": """
        from glm4v_magic.words.other import failure
        raise OptionError(*failure())
        """,
    "a constant of a room": """
        from glm4v_magic.words import THERE
        raise OptionError("Why.", THERE)
        """,
}
"""How ``Do this.`` may be said."""

OTHERS = {
    "either of two": (
        'raise OptionError("Why.", "Do this." if bad else "Or that.")',
        {"Do this.", "Or that."},
    ),
    "a value": ('raise OptionError("Why.", f"Give {name} again.")', {"Give {} again."}),
    "a value that is fixed": (
        'LAST = "red"\nraise OptionError("Why.", f"Paint {name} {LAST}.")',
        {"Paint {} red."},
    ),
    "a value alone": (
        'def act():\n    step = "Do this."\n    raise OptionError("Why.", f"{step}")',
        {"Do this."},
    ),
    "a sum with a value": ('raise OptionError("Why.", "Give " + name)', {"Give {}"}),
    "a sum of two choices": (
        'raise OptionError("Why.", ("Do" if bad else "Try") + " this.")',
        {"Do this.", "Try this."},
    ),
    "all callers": (
        "def act(step):\n"
        '    raise OptionError("Why.", step)\n'
        'act("Do this.")\nact("Or that.")\nother("No.")',
        {"Do this.", "Or that."},
    ),
    "all of a table": (
        'TABLE = {1: "Do this.", 2: "Or that."}\nraise OptionError("Why.", TABLE[key])',
        {"Do this.", "Or that."},
    ),
    "what may be meant": (
        'raise OptionError("Why.", did_you_mean(name, names))',
        {"Did you mean {}?"},
    ),
    "the reason alone": ('raise OptionError("Why it is so.")', set()),
    "the reason that is spread": ('raise OptionError(*("Why it is so.",))', set()),
    "a text in the place of a pair": (
        'def act():\n    failure = "Why it is so."\n    raise OptionError(*failure)',
        set(),
    ),
    "the key of an item": (
        'TABLE = {"Do this.": "Why."}\ndef act():\n    for step, why in TABLE.items():\n'
        '        raise OptionError("Why.", step)',
        set(),
    ),
    "the other column": (
        'TABLE = [("Do this.", "Why.")]\ndef act():\n    for step, why in TABLE:\n'
        '        raise OptionError("Why.", step)',
        {"Do this."},
    ),
    "a code": ('raise OptionError("Why.", code="more_gpus")', set()),
    "words of a front end": ('raise OptionError("Why.", remark("more_gpus"))', set()),
    "another call": ('print("Why.", "Do this.")', set()),
    "an error of Python": ('raise ValueError("Why.", "Do this.")', set()),
    "nothing but values": ('raise OptionError("Why.", f"{name}: {value}.")', set()),
    "no advice": ('raise OptionError("Why.", "")', set()),
    "a variable of a function within": (
        "def act():\n"
        "    def inner():\n"
        '        step = "Do this."\n'
        '    raise OptionError("Why.", step)',
        set(),
    ),
    "a variable of its own": (
        'step = "Do this."\ndef act():\n    step = "Or that."\n    raise OptionError("Why.", step)',
        {"Or that."},
    ),
    "a variable of its own that is not known": (
        'step = "Do this."\ndef act():\n    step = work()\n    raise OptionError("Why.", step)',
        set(),
    ),
    "what a function calls again": (
        "def step(n):\n"
        '    return step(n - 1) or "Do this."\n'
        'raise OptionError("Why.", step(3))',
        {"Do this."},
    ),
    "what is made of itself": (
        "def act():\n"
        '    step = "Do this."\n'
        "    step = step\n"
        '    raise OptionError("Why.", step)',
        {"Do this."},
    ),
    "a module of others": (
        'from elsewhere import THIS\nraise OptionError("Why.", THIS)',
        set(),
    ),
}  # fmt: skip
"""What else is found, and what is not."""


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Return the advice in the code of a module."""
    monkeypatch.setattr(hints, "PACKAGE", tmp_path)
    room = tmp_path / "words"
    room.mkdir()
    (room / "__init__.py").write_text('THERE = "Do this."\n')
    (room / "other.py").write_text(
        'THIS = "Do this."\n'
        "def step(n):\n    return THIS\n"
        'def failure():\n    return "Why.", THIS\n'
    )

    def read(code):
        (room / "module.py").write_text(dedent(code))
        hints.hints.cache_clear()
        try:
            places = hints.hints(("words/module.py",))
        finally:
            hints.hints.cache_clear()
        assert all(place.startswith("words/module.py:") for place, _ in places)
        return {text for _, text in places}

    return read


@pytest.mark.parametrize("form", FOUND)
def test_advice_is_found_in_every_form(found, form):
    assert found(FOUND[form]) == {"Do this."}


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_found_is_what_is_said(found, form):
    code, said = OTHERS[form]
    assert found(code) == said


def test_advice_in_two_modules_of_a_room(found, tmp_path):
    found("raise OptionError('Why.', 'Do this.')")
    (tmp_path / "words/more.py").write_text("\n\nerror.advise('Or that.')")
    places = hints.hints.__wrapped__(("words",))
    assert set(places) == {
        ("words/module.py:1", "Do this."),
        ("words/more.py:3", "Or that."),
    }


IN_ERRORS_OF_PYTHON = {
    "an error": ('raise ValueError("Do this.")', {"Do this."}),
    "an error that is not implemented": ('raise NotImplementedError(f"{name}: do this.")',
                                         {"{}: do this."}),
    "a constant": ('_THIS = "Do this."\nraise TypeError(_THIS)', {"Do this."}),
    "a warning": ('warnings.warn("Do this.", stacklevel=2)', {"Do this."}),
    "a line of a log": ('_log.warning("%s: do this.", name)', {"%s: do this."}),
    "a usage error": ('raise UsageError("Do this.")', {"Do this."}),
    "memory that ran out": ('raise torch.OutOfMemoryError("No more.")', {"No more."}),
    "a log of others": ('other.warning("Do this.")', set()),
    "an error of the package": ('raise OptionError("Do this.")', set()),
    "a word": ('raise KeyError("name")', set()),
    "what is not known": ("raise ValueError(text)", set()),
}  # fmt: skip
IN_PASSING = {
    "what is printed": ('print("Use this.")', {"Use this."}),
    "behind a statement": ('show(line("It is not there; use this."))',
                           {"It is not there; use this."}),
    "with parts": ('show(f"To go on: use {this}.")', {"To go on: use {}."}),
    "what an error says has happened": ('raise OptionError(f"{name} is one; use two.")',
                                        {"{} is one; use two."}),
    "a note": ('info = replace(info, notes=("use this",))', {"use this"}),
    "a command": ('show("%glm4v unload ends it.")', {"%glm4v unload ends it."}),
    "an option": ('show("It is there; --continue goes on.")', {"It is there; --continue goes on."}),
    "what is done again": ('show("run it again")', {"run it again"}),
    "an entry of a table": ('TABLE = {"a": "use this"}', {"use this"}),
    "what is": ('show("This is of use.")', set()),
    "documentation": ('def act():\n    "Use this."', set()),
    "a pattern": ('re.compile("use this")', set()),
    "a word": ('show("use")', set()),
    "a value of what has a code": ('remark("install", command=f"pip install {this}")', set()),
    "a hint": ('raise OptionError("Why.", "Use it so.")', set()),
    "a part of a hint": ('raise OptionError("Why.", f"Use it: {this}.".strip())', set()),
    "an error of Python": ('raise ValueError("Use this.")', set()),
}  # fmt: skip


@pytest.fixture
def elsewhere(found, tmp_path):
    """Return what `hints` finds in the code of a module that is no hint."""
    cached = (hints.hints, hints.in_errors_of_python, hints.in_passing)

    def read(code, function):
        (tmp_path / "words/module.py").write_text(dedent(code))
        for each in cached:
            each.cache_clear()
        try:
            return set(function())
        finally:
            for each in cached:
                each.cache_clear()

    return read


@pytest.mark.parametrize("form", IN_ERRORS_OF_PYTHON)
def test_what_errors_of_python_and_logs_say(elsewhere, form):
    code, said = IN_ERRORS_OF_PYTHON[form]
    assert elsewhere(code, hints.in_errors_of_python) == said


@pytest.mark.parametrize("form", IN_PASSING)
def test_what_is_said_in_passing(elsewhere, form):
    code, said = IN_PASSING[form]
    assert elsewhere(code, hints.in_passing) == said
