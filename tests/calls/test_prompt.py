import contextlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm4v_magic.calls.prompt import expand, require_text
from glm4v_magic.core.errors import PromptError

NAMES = {"animal": "cat", "count": 3, "animals": ["cat", "owl"], "table": {"a": {"b": "deep"}}}


def message_of(text, names=NAMES):
    with pytest.raises(PromptError) as caught:
        expand(text, names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("Is this a {{animal}}?", "Is this a cat?"),
        ("{{animal}}{{count}}", "cat3"),
        ("{{ animals[1] }} or {{ animals[0] }}", "owl or cat"),
        ("{{count + 1}} and {{len(animals)}}", "4 and 2"),
        ("{{ ', '.join(a for a in animals if a != animal) }}", "owl"),
        ("{{ [name + animal for name in animals] }}", "['catcat', 'owlcat']"),
        ("{{\n  max(\n    1,\n    count)\n}}", "3"),
        ("{{None}}", "None"),
        ('{{f"{count:03d}"}}', "003"),
    ],
)
def test_expressions_become_the_text_of_their_value(text, expanded):
    assert expand(text, NAMES) == expanded


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ('{{ {"a": 1}["a"] }}', "1"),
        ('{{ {"a": {"b": 2}}["a"]["b"] }}', "2"),
        ('{{ {"a":{"b":2}}}}.', "{'a': {'b': 2}}."),
        ("{{ {1}}}", "{1}"),
        ('{{ "}}" }}', "}}"),
        ("{{ '{' }}{{ '}' }}", "{}"),
        ('{{ "it\'s }} " + animal }}', "it's }} cat"),
        (r"{{ 'quote \' }} ' }}!", "quote ' }} !"),
        ('{{ """a "quoted" }} b""" }}', 'a "quoted" }} b'),
        ("{{ '''a\n}}''' }}", "a\n}}"),
        ('{"answer": {{count}}}', '{"answer": 3}'),
        ("{{table['a']['b']}}", "deep"),
    ],
)
def test_braces_and_strings_inside_an_expression(text, expanded):
    assert expand(text, NAMES) == expanded


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{animal} $animal ${animal} %s %(animal)s {0} {}",
        '{"type": "object", "properties": {"n": {"type": "integer"}}}',
        r"$\frac{1}{2}$ and $x_{i_{j}}$, \begin{aligned}{\bf a}\end{aligned}",
        "}} closes nothing }}",
        r"C:\new\table.png \\server\share \{ \}",
        "It's \"half\" a 'quote",
    ],
)
def test_everything_else_stays_as_it_is(text):
    assert expand(text, NAMES) == text


@given(st.text().filter(lambda text: "{{" not in text))
def test_text_without_double_braces_is_untouched(text):
    assert expand(text, {}) == text


@given(st.text(alphabet="{}\\ a\"'\n"))
def test_escaped_braces_come_out_as_they_went_in(text):
    assert expand(text.replace("{{", r"\{{"), {}) == text


@given(st.text(), st.text(alphabet=st.characters(exclude_characters="{\\")))
def test_values_go_in_whole_and_are_not_expanded_again(value, around):
    assert expand(f"{around}{{{{x}}}}{around}", {"x": value}) == f"{around}{value}{around}"


@given(st.text(alphabet="{}x1+()[]'\"\\# \n:,.", max_size=40))
def test_any_text_expands_or_is_refused(text):
    with contextlib.suppress(PromptError):
        expand(text, {"x": 1})


def test_a_value_with_braces_is_text():
    assert expand("{{a}}", {"a": "{{b}}", "b": "no"}) == "{{b}}"


def test_escaped_double_braces():
    assert expand(r"Jinja writes \{{ {{animal}} }}.", NAMES) == "Jinja writes {{ cat }}."


def test_an_unknown_name_has_its_line_and_close_matches():
    message = message_of("Look.\n\nIs it a {{anmial.upper()}}?")
    assert message == (
        "{{anmial.upper()}} in line 3 of the prompt uses anmial, which is not defined. "
        "Did you mean animal or animals?"
    )


def test_an_unknown_name_without_a_match_says_what_to_do():
    message = message_of("{{zzz}}")
    assert "zzz" in message
    assert "Define zzz first." in message
    assert r"\{{" in message


def test_private_names_are_not_suggested():
    assert "_animal" not in message_of("{{animl}}", {"_animal": 1, "__animl__": 2})


def test_a_name_missing_inside_a_called_function_is_not_blamed_on_the_prompt():
    def broken():
        return missing  # noqa: F821

    message = message_of("{{broken()}}", {"broken": broken})
    assert "failed: NameError: name 'missing' is not defined" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "a\n{{1 +}}",
            "{{1 +}} in line 2 of the prompt is not a Python expression: invalid syntax",
        ),
        ("{{x = 1}}", "is not a Python expression"),
        ("{{it's}}", "{{it's}} in line 1 of the prompt is not a Python expression"),
        ("{{count:.2f}}", "is not a Python expression"),
        ("{{await count}}", "is not a Python expression"),
        ("{{'\0'}}", "is not a Python expression"),
        ("{{" + "(" * 500 + ")" * 500 + "}}", "is not a Python expression"),
        ("{{1/0}}", "{{1/0}} in line 1 of the prompt failed: ZeroDivisionError: division by zero"),
        ("{{table['b']}}", "failed: KeyError: 'b'"),
        ("{{animal.uper()}}", "failed: AttributeError"),
        ("{{}}", "is empty"),
        ("{{  \n }}", "is empty"),
        ("a\n\n{{count\nand so on", "{{count in line 3 of the prompt is not closed by }}."),
        ("{{ {1, 2}", "is not closed"),
        ("{{ 'open", "is not closed"),
        ("{{" + "count + " * 50 + "}}", "..."),
    ],
)
def test_bad_expressions_are_told_in_one_line(text, part):
    assert part in message_of(text)


def test_an_error_of_several_lines_or_without_text_is_one_line():
    class OddError(Exception):
        def __str__(self):
            raise ValueError

    def fail(error):
        raise error

    names = {"fail": fail, "OddError": OddError}
    assert "RuntimeError: one" in message_of("{{fail(RuntimeError('one\\ntwo'))}}", names)
    assert message_of("{{fail(OddError())}}", names).endswith("failed: OddError")
    assert message_of("{{fail(AssertionError())}}", names).endswith("failed: AssertionError")


def test_a_value_that_has_no_text_is_an_error():
    class Mute:
        def __str__(self):
            raise RuntimeError("no words")

    assert "failed: RuntimeError: no words" in message_of("{{mute}}", {"mute": Mute()})


def test_the_original_exception_is_kept_for_debugging():
    with pytest.raises(PromptError) as caught:
        expand("{{1/0}}", {})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_interrupt_passes():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expand("{{stop()}}", {"stop": stop})


def test_the_namespace_is_not_changed():
    names = {"animal": "cat"}
    expand("{{animal}} {{(new := 1)}}", names)
    assert names == {"animal": "cat"}


def test_require_text_takes_off_the_whitespace_around():
    assert require_text("\n What is  this?\n\n") == "What is  this?"
    assert require_text("🐈") == "🐈"


def test_half_a_character_is_refused():
    with pytest.raises(PromptError, match=r"half a character, '\\ud83d'"):
        require_text("a \ud83d")


@pytest.mark.parametrize("text", ["", " ", "\n\t\r\n", "\u00a0\u2003", "\u200b\ufeff", "\0"])
def test_an_empty_prompt_is_refused(text):
    with pytest.raises(PromptError, match=r"The prompt is empty\. Write what"):
        require_text(text)


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, glm4v_magic.calls.prompt, glm4v_magic.images;"
        "heavy = {'torch', 'transformers', 'accelerate', 'PIL', 'numpy', 'ipywidgets', 'pynvml'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
