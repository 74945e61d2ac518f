"""Answers shaded by certainty: readable anywhere, complete, and harmless whatever a model says."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest
from attacks import ATTACKS
from html_tree import SCROLLS, Tree
from markdown_it import MarkdownIt
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from wide_text import wide

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.tokens import Alternative, Token
from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.live.screen import TerminalScreen
from glm4v_magic.notebook.render.answers.answer import LiveAnswer, answer_bundle
from glm4v_magic.notebook.render.answers.certainty import certainty_html, certainty_text

PAGES = {
    "mistune": markdown2html_mistune,
    "markdown-it": MarkdownIt("commonmark", {"html": True}).enable("table").render,
}
HARMLESS = {
    *("div", "span", "mark", "br", "details", "summary", "small", "p", "em"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


def answer(*tokens, **more):
    """An answer of tokens, each a text and its probability."""
    text, made = "", []
    for piece, probability in tokens:
        other = Alternative(f"other {piece}", math.log(probability / 2), utf8=b"other")
        utf8 = piece.encode(errors="replace")
        place = len(text), len(text) + len(piece)
        made.append(Token(piece, math.log(probability), *place, 7, (other,), utf8))
        text += piece
    usage = Usage(3, 0, len(made))
    return Answer(text, "What?", "m", usage, "stop", **{"tokens": tuple(made)} | more)


def attacked(attack):
    return answer(*((attack[at : at + 3], 0.2 + at % 7 / 10) for at in range(0, len(attack), 3)))


def titles(html):
    return [attributes["title"] for _, attributes in Tree(html).found if "title" in attributes]


def styles(html):
    return [
        attributes.get("style", "") for _, attributes in Tree(html).found if "title" in attributes
    ]


@pytest.mark.parametrize("parse", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_becomes_text(attack, parse):
    html = certainty_html(attacked(attack))
    assert "\n" not in html
    for tag, attributes in Tree(parse(f"{html}\n\nThe *end*.")).found:
        assert tag in HARMLESS
        assert set(attributes) <= {"style", "title", "scope"} | SCROLLS
        assert attributes.get("style", "").count("(") == attributes.get("style", "").count("rgba(")
    assert "<em>end</em>" in parse(f"{html}\n\nThe *end*.")
    # MathJax looks for these in the finished page, but not across elements.
    plain = re.sub(r'title="[^"]*"', "", html).replace("&#36;", "$").replace("&#92;", "\\")
    assert not re.search(r"(?<!<span>)[$\\]", plain)
    assert not re.search(r'title="[^"]*[$\\`<]', html)


@pytest.mark.parametrize("parse", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_can_be_read(attack, parse):
    seen = _Visible(parse(certainty_html(attacked(attack)))).text
    assert seen.replace("\u00a0", " ").strip() == printable(attack).strip()


class _Visible(HTMLParser):
    """Text of the first <div>, line ends included."""

    def __init__(self, html):
        super().__init__()
        self.text, self._is_over = "", False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.text += "\n" if tag == "br" and not self._is_over else ""

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        self._is_over = self._is_over or tag == "div"

    def handle_data(self, data):
        self.text += "" if self._is_over else data


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_a_terminal(attack, capsys):
    said = certainty_text(attacked(attack))
    assert said == printable(said)
    TerminalScreen("m").finish(attacked(attack))
    printed = capsys.readouterr().out
    assert said in printed
    assert "\x1b" not in printed


def test_the_less_certain_the_stronger():
    shades = styles(certainty_html(answer(*((f"w{p}", p) for p in (0.95, 0.8, 0.6, 0.3, 0.1)))))
    assert shades[0] == ""
    alphas = [float(re.search(r", ([\d.]+)\)", shade)[1]) for shade in shades[1:]]
    assert alphas == sorted(set(alphas))
    assert ["underline" in shade for shade in shades] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("page", "text"), [((255, 255, 255), 0.13 * 255), ((17, 17, 17), 0.87 * 255)]
)
def test_every_shade_can_be_read_on_light_and_dark_pages(page, text):
    html = certainty_html(answer(*((f"w{p}", p) for p in (0.8, 0.6, 0.3, 0.1))))
    for shade in styles(html):
        *colour, alpha = map(float, re.search(r"rgba\((.*?)\)", shade)[1].split(","))
        behind = [alpha * c + (1 - alpha) * p for c, p in zip(colour, page, strict=True)]
        low, high = sorted((luminance(behind), luminance([text] * 3)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def luminance(colour):
    linear = [
        (c / 255 / 12.92) if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4
        for c in colour
    ]
    return sum(c * w for c, w in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def test_unlikely_words_are_marked_where_styles_are_dropped():
    html = certainty_html(answer(("sure", 0.9), (" maybe", 0.4)))
    assert re.findall(r"<mark [^>]*>(\w+)</mark>", html) == ["maybe"]


def test_hovering_shows_alternatives_and_the_table_all_of_them():
    alternatives = tuple(Alternative(f"w{n}", -1.0 - n) for n in range(20))
    token = Token("cat", math.log(0.5), 0, 3, alternatives=alternatives)
    html = certainty_html(_of(token))
    (title,) = titles(html)
    assert title.startswith('50.0%; likeliest: "w0" 36.8%, "w1" 13.5%')
    assert "w4" in title
    assert "w5" not in title
    assert "w19" in "".join(Tree(html).text)
    assert len(Tree(html).all("th", scope="col")) == 4


def _of(*tokens, text="cat"):
    return Answer(text, "What?", "m", Usage(3, 0, 1), "stop", tokens=tokens)


def test_tokens_of_one_character_are_one_part():
    cat = "猫".encode()
    tokens = [
        Token("\ufffd", math.log(0.5), 0, 1, utf8=cat[:2]),
        Token("\ufffd", math.log(0.5), 0, 1, utf8=cat[2:]),
    ]
    html = certainty_html(_of(*tokens, text="猫"))
    assert titles(html) == ["25.0%, 2 tokens together"]
    assert "bytes E7 8C" in html
    assert _Visible(html).text == "猫"


def test_text_without_probabilities_is_shown_as_it_is():
    token = Token("b", math.log(0.1), 1, 2)
    html = certainty_html(_of(token, text="abc"))
    assert _Visible(html).text == "abc"
    assert len(titles(html)) == 1


def test_spaces_and_lines_are_kept():
    html = certainty_html(answer(("a\n\n", 0.5), ("    b", 0.5), ("  c", 0.5)))
    assert _Visible(html).text == "a\n\n\u00a0\u00a0\u00a0\u00a0b\u00a0\u00a0c"


def test_the_line_tells_the_mean_and_the_least_likely():
    text = certainty_text(answer(("a", 0.5), ("b", 0.125)))
    assert text.splitlines()[0] == ('2 tokens, geometric mean 25.0%; least likely "b" with 12.5%')
    assert text.splitlines()[1:] == [
        '   50.0%  "a"  "other a" 25.0%',
        '   12.5%  "b"  "other b" 6.2%',
    ]


def test_chinese_tokens_keep_the_columns():
    lines = certainty_text(answer(("猫咪", 0.5), ("b", 0.125))).splitlines()[1:]
    assert len({wide(line[: line.index('"other')]) for line in lines}) == 1


@pytest.mark.parametrize(
    ("logprob", "shown"),
    [(0.0, ">99.9%"), (1e-7, ">99.9%"), (-9999.0, "<0.01%"), (math.log(0.004), "0.40%")],
)
def test_what_is_nearly_certain_or_impossible(logprob, shown):
    assert f" {shown}  " in certainty_text(_of(Token("cat", logprob, 0, 3)))


def test_a_long_answer_has_a_table_of_limited_length():
    long = answer(*[("w ", 0.5)] * 1000)
    html = certainty_html(long)
    assert len(titles(html)) == 1000
    assert len(Tree(html).all("th", scope="row")) == 400
    assert "600 more tokens" in html
    assert len(certainty_text(long).splitlines()) == 42


def test_a_text_without_end_is_shaded_at_its_beginning():
    html = certainty_html(answer(*[("w ", 0.5)] * 9000))
    assert len(titles(html)) == 4000
    assert _Visible(html).text == "w " * 9000


@pytest.mark.parametrize("utf8", [b"", b"\xe7" * 10**6])
def test_a_token_without_end_is_cut(utf8):
    text = "\ufffd" * 10**6
    token = Token(text, -1.0, 0, 3, alternatives=(Alternative(text, -2.0),) * 20, utf8=utf8)
    shown = answer_bundle(_of(token))
    assert all(len(each) < 10_000 for each in shown.values())


def test_an_answer_is_shaded_in_every_form():
    bundle = answer_bundle(answer(("sure", 0.9), (" maybe", 0.4)))
    assert "<mark" in bundle["text/markdown"]
    assert "geometric mean" in bundle["text/plain"]
    assert "<" not in bundle["text/plain"]
    assert "3 text + 0 visual tokens in" in bundle["text/markdown"]
    plain = answer_bundle(answer(("sure", 0.9), format="text"))
    assert list(plain) == ["text/plain"]
    found = answer_bundle(answer(('{"a":', 0.9), ("1}", 0.2), format="json", value={"a": 1}))
    assert "<mark" in found["text/markdown"]


def test_it_is_shaded_at_the_end():
    shown = []
    live = LiveAnswer(shown.append)
    live.add("sure maybe")
    live.finish(answer(("sure", 0.9), (" maybe", 0.4)))
    assert "<mark" not in shown[0]["text/markdown"]
    assert "<mark" in shown[-1]["text/markdown"]


def test_a_server_that_sent_none():
    line = "The server sent no log-probabilities."
    bundle = answer_bundle(answer(("Hello", 0.5), tokens=()))
    assert all(line in shown for shown in bundle.values())
    for tokens in (None, answer(("Hello", 0.5)).tokens):
        bundle = answer_bundle(answer(("Hello", 0.5), tokens=tokens))
        assert not any(line in shown for shown in bundle.values())
