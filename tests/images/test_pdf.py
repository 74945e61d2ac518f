"""Pages of PDF documents as images."""

from __future__ import annotations

import base64
import io
import sys

import pypdfium2
import pytest
from photos import error_of

from glm4v_magic.images import Limits, resolve_images, to_image
from glm4v_magic.images.pdf import count_pages
from glm4v_magic.mapping.items import items_of

A4 = (595, 842)


def pdf(*sizes) -> bytes:
    """Pages of these sizes in points; the nth has a black square of 10 n points at its top left."""
    document = pypdfium2.PdfDocument.new()
    for number, size in enumerate(sizes, 1):
        page = document.new_page(*size)
        box = pypdfium2.raw.FPDFPageObj_CreateNewRect(0, size[1] - 10 * number, 10 * number, 999)
        pypdfium2.raw.FPDFPageObj_SetFillColor(box, 0, 0, 0, 255)
        pypdfium2.raw.FPDFPath_SetDrawMode(box, pypdfium2.raw.FPDF_FILLMODE_WINDING, False)
        pypdfium2.raw.FPDFPage_InsertObject(page, box)
        page.gen_content()
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def number_of(image) -> int:
    """Which page of `pdf` an image shows."""
    width = image.image.width
    dark = sum(image.image.convert("L").crop((0, 5, width, 6)).histogram()[:128])
    return round(dark / (width / A4[0]) / 10)


# Encrypted with the user password "secret", RC4 of 40 bits; written out, since PDFium encrypts
# nothing.
LOCKED = b"""%%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>endobj
4 0 obj<</Filter/Standard/V 1/R 2/O<%s>/U<%s>/P -4>>endobj
trailer<</Root 1 0 R/Encrypt 4 0 R/ID[<00><00>]>>
""" % (b"11" * 32, b"22" * 32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper.pdf").write_bytes(pdf(*[A4] * 3))
    (tmp_path / "locked.pdf").write_bytes(LOCKED)
    (tmp_path / "cut.pdf").write_bytes(pdf(A4)[:300])
    (tmp_path / "head.pdf").write_bytes(b"%PDF-1.7\n")
    return tmp_path


@pytest.mark.parametrize(
    ("word", "page", "number"),
    [
        ("paper.pdf", None, 1),
        ("paper.pdf", 3, 3),
        ("paper.pdf#page=3", None, 3),
        ("./paper.pdf#PAGE=02", None, 2),
        ("paper.pdf#page=2", 2, 2),
    ],
)
def test_a_page_is_drawn_and_named(folder, word, page, number):
    (image,) = resolve_images([word], {"paper": 1}, page=page)
    assert image.source.endswith(f"paper.pdf, page {number}")
    assert number_of(image) == number
    assert image.image.mode == "RGB"
    assert image.image.size == image.original_size == (1653, 2339)


def test_whatever_holds_a_document(folder):
    content = pdf(A4, A4)
    address = f"data:application/pdf;base64,{base64.b64encode(content).decode()}"
    with (folder / "paper.pdf").open("rb") as file:
        values = [content, io.BytesIO(content), file, folder / "paper.pdf"]
        values += [{"name": "x.pdf", "content": content}, address]
        for value in values:
            image = to_image(value, "it", page=2)
            assert number_of(image) == 2
            assert image.source.endswith(", page 2")


def test_a_file_may_be_called_like_a_page(folder):
    (folder / "x.pdf#page=9").write_bytes(pdf(A4))
    (image,) = resolve_images(["x.pdf#page=9"], {})
    assert image.source == "x.pdf#page=9, page 1"


@pytest.mark.parametrize(
    ("word", "page", "said"),
    [
        ("paper.pdf", 4, "paper.pdf has 3 pages, and no page 4."),
        ("paper.pdf#page=0", None, "paper.pdf has 3 pages, and no page 0."),
        ("paper.pdf", 0, "paper.pdf has 3 pages, and no page 0."),
        ("paper.pdf#page=1", 2, "paper.pdf#page=1 is page 1, and page 2 is asked for, too."),
        ("paper.pdf#page=x", None, "paper.pdf#page=x: no such file in "),
        ("nowhere.pdf#page=1", None, "nowhere.pdf: no such file in "),
        ("cut.pdf", None, "cut.pdf is a PDF document that is damaged or has no pages: "),
        ("head.pdf", None, "head.pdf is a PDF document that is damaged or has no pages: "),
        ("locked.pdf", None, "locked.pdf is a PDF document with a password. Save a copy"),
    ],
)
def test_what_cannot_be_read_says_why_in_a_line(folder, word, page, said):
    message = error_of(resolve_images, [word], {}, page=page)
    assert message.startswith(said)
    assert "\n" not in message


def test_a_copy_without_the_password_is_read():
    assert "Save a copy without one." in error_of(to_image, LOCKED, "it")
    assert to_image(LOCKED.replace(b"/Encrypt 4 0 R", b""), "it").image.size


def test_a_document_without_pages():
    said = "it is a PDF document that is damaged or has no pages: "
    content = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    content += b"2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\ntrailer<</Root 1 0 R>>\n"
    assert error_of(to_image, content, "it").startswith(said)


@pytest.mark.parametrize(
    ("size", "limits", "drawn"),
    [
        ((14400, 14400), Limits(), (4096, 4096)),
        ((14400, 14400), Limits(megapixels=1), (1000, 1000)),
        ((72, 36), Limits(), (200, 100)),
        ((100_000, 1), Limits(), (4096, 1)),
    ],
)
def test_a_page_is_drawn_as_large_as_is_of_use(size, limits, drawn):
    assert to_image(pdf(size), "it", limits=limits).image.size == drawn


def test_without_the_package_the_line_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    message = error_of(resolve_images, ["paper.pdf"], {})
    assert message.startswith("paper.pdf is a PDF document, and the package pypdfium2, ")
    assert message.endswith("Install it with: pip install pypdfium2")


class TestRows:
    def test_each_page_of_a_document_is_a_row(self, folder):
        items = items_of("paper.pdf", "x")
        assert items.values == tuple(f"paper.pdf#page={n}" for n in (1, 2, 3))
        assert items.names == tuple(f"paper.pdf, page {n}" for n in (1, 2, 3))
        images = [
            to_image(value, name) for value, name in zip(items.values, items.names, strict=True)
        ]
        assert [number_of(image) for image in images] == [1, 2, 3]
        assert tuple(image.source for image in images) == items.names

    def test_documents_and_images_of_a_folder(self, folder):
        (folder / "cut.pdf").unlink()
        to_image(pdf(A4), "it").image.save(folder / "a10.png")
        to_image(pdf(A4), "it").image.save(folder / "a9.png")
        names = items_of(".", "x").names
        assert [name.removeprefix("./") for name in names] == [
            "a9.png", "a10.png", "head.pdf", "locked.pdf",
            "paper.pdf, page 1", "paper.pdf, page 2", "paper.pdf, page 3",
        ]  # fmt: skip
        assert len(items_of("p*.pdf", "x")) == 3

    def test_one_document_that_cannot_be_read(self, folder):
        assert error_of(items_of, "locked.pdf", "x").startswith("locked.pdf is a PDF document with")

    def test_counting_reads_no_page(self, folder):
        assert count_pages(folder / "paper.pdf", "x") == 3
