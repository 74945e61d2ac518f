"""HTML as a tree, for tests of what is rendered."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"br", "hr", "img", "input", "wbr"}
SCROLLS = {"tabindex", "role", "aria-label", "style"}
"""Attributes of what holds a wide table: a link without an address; see `render.scrolling`."""


class Tree(HTMLParser):
    """Attributes of every element, and whether tags are closed in order.

    What holds wide tables, and ends of lines within long names, are ours, do nothing, and are kept
    apart.
    """

    def __init__(self, html):
        super().__init__()
        self.found, self.open, self.text, self.scrolling = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "a" and {*attributes} == SCROLLS:
            self.scrolling.append(attributes)
        elif tag != "wbr":
            self.found.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag, **attributes):
        return [a for t, a in self.found if t == tag and attributes.items() <= a.items()]
