"""How words are read: paths, patterns, variables, expressions, and what stands for nothing."""

from __future__ import annotations

import contextlib
import os
import pathlib

import pytest
from photos import BLUE, GREEN, RED, colours, data_uri, error_of, fill, png
from PIL import Image

from glm4v_magic.images import resolve_images, to_image, with_clips_named


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with images in it."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


class TestWords:
    def test_a_path(self):
        (photo,) = resolve_images(["red.png"], {})
        assert colours(photo) == [RED]
        assert photo.source == "red.png"
        assert photo.original_size == (8, 6)

    def test_several_words_keep_their_order(self):
        photos = resolve_images(["photos/b.png", "red.png", "photos/a.png"], {})
        assert [photo.source for photo in photos] == [
            "photos/b.png",
            "red.png",
            "photos/a.png",
        ]
        assert [colours(photo) for photo in photos] == [[BLUE], [RED], [GREEN]]

    def test_no_words_give_no_images(self):
        assert resolve_images([], {}) == ()

    def test_paths_are_relative_to_base(self, folder):
        (photo,) = resolve_images(["a.png"], {}, base=folder / "photos")
        assert colours(photo) == [GREEN]
        assert colours(to_image("a.png", "x", base=folder / "photos")) == [GREEN]

    def test_an_absolute_path(self, folder):
        assert colours(resolve_images([str(folder / "red.png")], {})[0]) == [RED]

    def test_a_path_in_the_home_folder(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder / "photos"))
        (photo,) = resolve_images(["~/a.png"], {}, base=pathlib.Path("/"))
        assert colours(photo) == [GREEN]
        assert photo.source == "~/a.png"
        assert len(resolve_images(["~/*.png"], {}, base=pathlib.Path("/"))) == 2

    @pytest.mark.parametrize(
        "name", ["my cat.png", "it's.png", "[1].png", "猫 ü.png", "*.png", "~a"]
    )
    def test_odd_names(self, folder, name):
        (folder / name).write_bytes(png(BLUE))
        (photo,) = resolve_images([name], {})
        assert colours(photo) == [BLUE]

    def test_a_pattern_gives_its_files_by_name(self):
        photos = resolve_images(["photos/*.png"], {})
        assert [photo.source for photo in photos] == ["photos/a.png", "photos/b.png"]
        assert len(resolve_images(["photos/*"], {})) == 3
        assert len(resolve_images(["photos/[ac].*"], {})) == 2
        assert len(resolve_images(["**/*.png"], {})) == 3

    def test_a_pattern_of_clips_is_the_files_that_match(self, folder):
        (folder / "clips").mkdir()
        for name in ("10.mp4", "2.mp4", "still.png"):
            (folder / "clips" / name).write_bytes(b"")
        words = ["clips/*.mp4", "photos/*", "red.png", "clips[0]"]
        assert with_clips_named(words, {"clips": []}) == [
            *("clips/2.mp4", "clips/10.mp4"), *words[1:]
        ]  # fmt: skip
        assert with_clips_named(["clips/*"], {}) == [
            "clips/2.mp4", "clips/10.mp4", "clips/still.png"
        ]  # fmt: skip

    def test_a_pattern_skips_folders(self):
        assert [each.source for each in resolve_images(["*"], {})] == ["red.png"]

    def test_a_variable(self):
        (photo,) = resolve_images(["photo"], {"photo": Image.new("RGB", (3, 2), GREEN)})
        assert colours(photo) == [GREEN]
        assert photo.source == "photo"

    def test_a_variable_wins_over_a_file_of_the_same_name(self, folder):
        (folder / "cat").write_bytes(png(RED))
        names = {"cat": Image.new("RGB", (3, 2), BLUE)}
        assert colours(resolve_images(["cat"], names)[0]) == [BLUE]
        assert colours(resolve_images(["./cat"], names)[0]) == [RED]
        assert colours(resolve_images(["cat"], {})[0]) == [RED]

    def test_a_name_with_the_ending_of_an_image_is_always_a_file(self, folder):
        class Photo:
            png = Image.new("RGB", (3, 2), BLUE)

        assert colours(resolve_images(["red.png"], {"red": Photo()})[0]) == [RED]
        message = error_of(resolve_images, ["photo.png"], {"photo": Photo()})
        assert message == (
            f"photo.png: no such file in {folder}. Did you mean photos? "
            "The variable is written photo."
        )

    @pytest.mark.parametrize(
        "word",
        ["photos[1]", "photos[-1]", "row.image", "table['a/b.png']", "make(2)", "photos[index]"],
    )
    def test_expressions(self, word):
        class Row:
            image = Image.new("RGB", (3, 2), BLUE)

        names = {
            "photos": [Image.new("RGB", (3, 2), RED), Row.image],
            "row": Row(),
            "table": {"a/b.png": Row.image},
            "make": lambda _: Row.image,
            "index": 1,
        }
        (photo,) = resolve_images([word], names)
        assert colours(photo) == [BLUE]
        assert photo.source == word

    def test_an_expression_that_gives_a_list(self):
        photos = [Image.new("RGB", (3, 2), colour) for colour in (RED, GREEN, BLUE)]
        found = resolve_images(["photos[1:]"], {"photos": photos})
        assert [colours(photo) for photo in found] == [[GREEN], [BLUE]]
        found = resolve_images(["list(photos[i]for(i)in(2,0))"], {"photos": photos, "list": list})
        assert [colours(photo) for photo in found] == [[BLUE], [RED]]

    def test_an_existing_file_wins_over_an_expression(self, folder):
        (folder / "photos[0]").write_bytes(png(GREEN))
        names = {"photos": [Image.new("RGB", (3, 2), RED)]}
        assert colours(resolve_images(["photos[0]"], names)[0]) == [GREEN]

    def test_an_expression_wins_over_a_pattern(self, folder):
        (folder / "photos1").write_bytes(png(GREEN))
        names = {"photos": [None, Image.new("RGB", (3, 2), RED)]}
        assert colours(resolve_images(["photos[1]"], names)[0]) == [RED]
        assert colours(resolve_images(["photos[1]"], {})[0]) == [GREEN]

    def test_the_namespace_is_not_changed(self):
        names = {"photos": [Image.new("RGB", (3, 2), RED)]}
        resolve_images(["photos[0]"], names)
        assert list(names) == ["photos"]

    def test_a_list_variable_expands_in_order(self, folder):
        names = {"photos": ["red.png", pathlib.Path("photos/a.png"), png(BLUE)]}
        photos = resolve_images(["photos"], names)
        assert [colours(photo) for photo in photos] == [[RED], [GREEN], [BLUE]]
        assert [photo.source for photo in photos] == ["red.png", "photos/a.png", "photos[2]"]

    def test_a_text_variable_is_a_path_a_pattern_or_an_address(self):
        names = {"path": "red.png", "pattern": "photos/*.png", "uri": data_uri(png(GREEN))}
        photos = resolve_images(["path", "pattern", "uri"], names)
        assert [photo.source for photo in photos] == [
            "red.png",
            "photos/a.png",
            "photos/b.png",
            "data: URI",
        ]

    def test_a_text_variable_is_never_another_variable(self):
        names = {"path": "photo", "photo": Image.new("RGB", (3, 2), RED)}
        assert error_of(resolve_images, ["path"], names).startswith("path: photo: no such file")


class TestWordsThatNameNothing:
    def test_a_missing_file_has_close_matches_and_its_folder(self, folder):
        assert error_of(resolve_images, ["rde.png"], {}) == (
            f"rde.png: no such file in {folder}. Did you mean red.png?"
        )

    def test_close_matches_come_from_the_folder_of_the_word(self, folder):
        assert error_of(resolve_images, ["photos/ab.png"], {"a": 1}) == (
            f"photos/ab.png: no such file in {folder}/photos. Did you mean b.png or a.png?"
        )

    def test_a_missing_folder(self, folder):
        message = error_of(resolve_images, ["photo/a.png"], {})
        assert message == f"photo/a.png: there is no folder {folder}/photo."

    def test_a_file_as_folder(self, folder):
        message = error_of(resolve_images, ["red.png/a.png"], {})
        assert "there is no folder" in message

    def test_an_unknown_variable_has_close_matches(self, folder):
        names = {"photo": 1, "photograph": 2, "_photos": 3, "photon": open, "photoz": os}
        assert error_of(resolve_images, ["photi"], names) == (
            f"photi: neither a variable nor a file in {folder}. Did you mean photo or photos?"
        )

    @pytest.mark.parametrize("word", ["imges[0]", "imges.first", "imges"])
    def test_an_unknown_variable_in_an_expression(self, word, folder):
        assert error_of(resolve_images, [word], {"images": []}) == (
            f"{word}: neither a variable nor a file in {folder}. Did you mean images?"
        )

    def test_nothing_alike(self, folder):
        message = error_of(resolve_images, ["zzzz"], {"x": 1})
        assert message == f"zzzz: neither a variable nor a file in {folder}."

    @pytest.mark.parametrize("word", ["$photo", "{photo}", "{{photo}}"])
    def test_a_variable_is_written_bare(self, word, folder):
        assert error_of(resolve_images, [word], {"photo": 1}) == (
            f"{word}: no such file in {folder}. The variable is written photo."
        )

    @pytest.mark.parametrize("words", [["my", "own", "cat.png"], ["my\\", "own\\", "cat.png"]])
    def test_a_name_with_spaces_goes_in_quotes(self, words, folder):
        assert "quotes" not in error_of(resolve_images, ["red.png", *words], {})
        (folder / "my own cat.png").write_bytes(png(RED))
        message = error_of(resolve_images, ["red.png", *words, "red.png"], {})
        assert message.endswith('A name with spaces goes in quotes: "my own cat.png".')

    @pytest.mark.parametrize("word", ["www.example.org/cat.jpg", "example.org/cat.jpg"])
    def test_an_address_without_its_scheme(self, word, folder):
        message = error_of(resolve_images, [word], {})
        assert message.endswith("A web address begins with https://.")
        assert "https" not in error_of(resolve_images, ["nowhere/cat.jpg"], {})
        assert "https" not in error_of(resolve_images, ["red.png/cat.jpg"], {})

    def test_a_folder_says_what_it_holds(self):
        assert error_of(resolve_images, ["photos"], {}) == (
            "photos is a folder. It holds *.png (2), *.jpg (1). session.map asks about each."
        )

    def test_a_folder_without_images(self, folder):
        (folder / "empty").mkdir()
        assert error_of(resolve_images, ["empty"], {}) == ("empty is a folder. It holds no images.")

    def test_a_pattern_without_match_says_what_there_is(self, folder):
        assert error_of(resolve_images, ["photos/*.gif"], {}) == (
            f"photos/*.gif: no file in {folder}/photos matches. It holds *.png (2), *.jpg (1)."
        )
        assert "no file in" in error_of(resolve_images, ["nowhere/*.png"], {})

    def test_a_windows_path_elsewhere(self):
        message = error_of(resolve_images, [r"photos\a.png"], {})
        assert message.endswith("Folders are separated by / here: photos/a.png")

    @pytest.mark.parametrize(
        "word", ["", "  ", "\0", "a\0b.png", "x" * 5000, "~nobody-at-all/x.png"]
    )
    def test_words_that_no_file_can_have(self, word):
        assert error_of(resolve_images, [word], {})

    def test_line_breaks_and_control_characters_are_shown_as_such(self):
        message = error_of(resolve_images, ["a\nb\x1b[31m.png"], {})
        assert r"a\nb\x1b[31m.png" in message

    def test_an_expression_that_fails(self):
        names = {"photos": []}
        message = error_of(resolve_images, ["photos[3]"], names)
        assert message == "photos[3] failed: IndexError: list index out of range"

    def test_an_expression_with_an_unknown_name_is_not_run(self):
        calls = []
        message = error_of(resolve_images, ["run(unknown)"], {"run": calls.append})
        assert "neither a variable nor a file" in message
        assert calls == []

    def test_an_interrupt_in_an_expression_passes(self):
        def stop():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            resolve_images(["stop()"], {"stop": stop})

    @pytest.mark.parametrize(
        ("value", "kind"),
        [({}, "a dict"), (3, "an int"), (None, "None"), (os, "a module"), (open, "a builtin_")],
    )
    def test_a_variable_of_a_wrong_type(self, value, kind):
        message = error_of(resolve_images, ["thing"], {"thing": value})
        assert message.startswith(f"thing is {kind}")
        assert "Give a path, URL, PIL image" in message

    def test_a_variable_of_a_wrong_type_beside_a_file_of_that_name(self, folder):
        (folder / "thing").write_bytes(png())
        message = error_of(resolve_images, ["thing"], {"thing": {}})
        assert message == "thing is a dict, not an image. For the file of this name write ./thing."

    def test_an_empty_list_and_a_bad_item(self):
        assert error_of(resolve_images, ["x"], {"x": []}) == "x is an empty list."
        message = error_of(resolve_images, ["x"], {"x": [png(), [png()]]})
        assert message.startswith("x[1] is a list, not an image.")
        message = error_of(resolve_images, ["x"], {"x": ["red.png", "rd.png"]})
        assert message.startswith("x[1]: rd.png: no such file in ")


class TestFilesThatCannotBeRead:
    def test_permission_denied(self, folder):
        with unprivileged():
            (folder / "red.png").chmod(0)
            assert error_of(resolve_images, ["red.png"], {}).startswith(
                "red.png: permission denied."
            )
            (folder / "photos").chmod(0)
            assert "permission denied" in error_of(resolve_images, ["photos/a.png"], {})
            (folder / "photos").chmod(0o755)

    def test_a_pipe_is_not_read(self, folder):
        os.mkfifo(folder / "pipe.png")
        assert error_of(resolve_images, ["pipe.png"], {}) == (
            "pipe.png is a device or a pipe, not an image file."
        )


@contextlib.contextmanager
def unprivileged():
    """Run as a user who owns the current folder and may not read everything."""
    if os.geteuid() != 0:
        yield
        return
    nobody = 65534
    here = pathlib.Path.cwd()
    opened = []
    for path in [*here.rglob("*"), here, *here.parents]:
        if here in (path, *path.parents):
            os.chown(path, nobody, nobody)
        elif path != pathlib.Path("/") and path.stat().st_mode & 0o011 != 0o011:
            opened.append((path, path.stat().st_mode))
            path.chmod(path.stat().st_mode | 0o011)
    Image.init()  # while modules can still be read
    os.seteuid(nobody)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in opened:
            path.chmod(mode)


@pytest.mark.parametrize("word", ["0x1for x in y", r"p['\d']"])
def test_words_that_are_odd_python_warn_nobody(word):
    error_of(resolve_images, [word], {"y": 1})  # a warning would be an error here
