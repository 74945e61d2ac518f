"""Clips and frames: what is read of them, and what is refused in one line."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import write_clip
from PIL import Image

from glm4v_magic.core.errors import ImageError, OptionError
from glm4v_magic.images import Limits, to_image
from glm4v_magic.images.formats import CLIP_FORMATS, CLIPS, clip_format
from glm4v_magic.images.video import is_clip, is_video, to_video


@pytest.fixture
def clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_clip(tmp_path / "clip.mp4")


def greys(video, indices):
    return [np.asarray(f.image.image).mean() / 4 for f in video.frames(indices, (8, 8))]


def test_facts_of_a_clip(clip):
    video = to_video("clip.mp4", "v")
    assert (video.source, video.size, video.count, video.fps) == ("clip.mp4", (64, 48), 30, 10)
    assert video.duration == 3
    assert video.seen == ()


@pytest.mark.parametrize(
    ("rotation", "size", "white"),
    [
        (90, (48, 64), (0, 1)),
        (180, (64, 48), (1, 1)),
        (270, (48, 64), (1, 0)),
        (-90, (48, 64), (1, 0)),
    ],
)
def test_a_clip_of_a_phone_is_seen_upright(tmp_path, rotation, size, white):
    video = to_video(write_clip(tmp_path / "turned.mp4", rotation=rotation), "v")
    assert video.size == size
    (frame, *_) = video.frames([2, 3], size)
    seen = np.asarray(frame.image.image.convert("L"))
    corners = {
        (x, y): seen[-4 * y - 5 + 9 * (1 - y), -4 * x - 5 + 9 * (1 - x)]
        for x in (0, 1)
        for y in (0, 1)
    }
    assert [corner for corner, grey in corners.items() if grey > 128] == [white]


def test_the_frames_that_are_asked_for_are_decoded(clip):
    indices = [0, 3, 4, 11, 29, 29]
    video = to_video(clip, "v")
    assert greys(video, indices) == pytest.approx(indices, abs=0.7)
    assert [f.time for f in video.seen] == [0, 0.3, 0.4, 1.1, 2.9]  # each once
    assert video.seen[3].image.source.endswith("clip.mp4 at 0:01.1")


def test_a_part_of_a_clip(clip):
    video = to_video("clip.mp4", "v", start=1, end=2, fps=2)
    assert (video.count, video.start, video.wanted_fps) == (10, 1.0, 2)
    assert greys(video, [0, 9]) == pytest.approx([10, 19], abs=0.7)
    assert [f.time for f in video.seen] == [1.0, 1.9]


def test_frames_far_ahead_are_sought(tmp_path):
    path = write_clip(tmp_path / "long.mp4", count=600, fps=10, size=(32, 32))
    indices = [0, 150, 151, 433, 599]
    found = greys(to_video(path, "v"), indices)
    assert found == pytest.approx([each % 60 for each in indices], abs=0.8)


def test_only_frames_in_the_size_that_is_seen_are_kept(clip):
    frames = to_video("clip.mp4", "v").frames(range(30), (14, 28))
    assert {f.image.image.size for f in frames} == {(14, 28)}
    assert frames[0].image.original_size == (64, 48)


@pytest.mark.parametrize("ending", [".avi", ".mkv", ".mov"])
def test_other_containers(tmp_path, ending):
    video = to_video(write_clip(tmp_path / f"c{ending}"), "v")
    assert video.count == 30
    assert greys(video, [7]) == pytest.approx([7], abs=0.7)


def test_lists_and_arrays_of_frames():
    photos = [Image.new("L", (40, 20), 4 * i) for i in range(3)]
    assert greys(to_video(photos, "photos"), [0, 2]) == pytest.approx([0, 2])
    array = np.stack([np.full((20, 40, 3), 4 * i, np.uint8) for i in range(4)])
    video = to_video(array, "array", fps=2)
    assert (video.count, video.fps, video.size) == (4, 2, (40, 20))
    assert greys(video, [1, 3]) == pytest.approx([1, 3])


def look(*arguments, **options):
    video = to_video(*arguments, **options)
    return video.frames(range(video.count), (8, 8))


def refused(kind, *arguments, **options):
    with pytest.raises(kind) as error:
        look(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_seen(clip, tmp_path):
    whole = clip.read_bytes()
    (tmp_path / "text.mp4").write_text("no clip at all")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("text.mp4", "cut.mp4", "empty.mp4"):
        said = refused(ImageError, name, "v")
        assert re.match(rf"{name} (is damaged or no video|has no frames)", said)
    assert "no such file" in refused(ImageError, "gone.mp4", "v")
    assert refused(ImageError, "clip.mp4", "v", start=60).startswith(
        "clip.mp4 ends at 0:03, and is to be seen from 1:00 on."
    )
    assert to_video("clip.mp4", "v", start=2.99).count == 1  # the last one, until the end
    assert "from 0:03 on" in refused(ImageError, "clip.mp4", "v", start=3)
    assert "which is no time" in refused(OptionError, "clip.mp4", "v", start=2, end=1)
    assert "megapixels" in refused(ImageError, "clip.mp4", "v", limits=Limits(megapixels=0.001))


@pytest.mark.parametrize("suffix", sorted({*CLIPS} - {".webm", ".ogv"}))  # of other codecs
def test_the_bytes_of_a_clip(tmp_path, suffix):
    path = write_clip(tmp_path / f"clip{suffix}")
    content = path.read_bytes()
    assert suffix in clip_format(content).suffixes
    video = to_video(content, "held", start=1, end=2)
    assert (video.source, video.size, video.count) == ("held", (64, 48), 10)
    assert greys(video, [0, 5]) == greys(to_video(path, "v", start=1, end=2), [0, 5])
    with pytest.raises(ImageError, match=r"^held is a video\. Ask about it as a video: video="):
        to_image(content, "held")


@pytest.mark.parametrize("each", CLIP_FORMATS, ids=lambda each: each.name)
def test_all_that_is_known_of_a_container_is_taken(each, tmp_path):
    """FFmpeg has it, and nothing of it is said of another."""
    assert each.name in {name for known in av.formats_available for name in known.split(",")}
    for other in CLIP_FORMATS:
        if other is not each:
            assert not {*each.suffixes, *each.media_types} & {*other.suffixes, *other.media_types}
    if each.name != "ogg":
        path = write_clip(tmp_path / f"clip{each.suffixes[-1]}")
        content = base64.b64encode(path.read_bytes()).decode()
        for media_type in each.media_types:
            assert to_video(f"data:{media_type};base64,{content}", "v", end=1).count == 10


HELD = {
    "bytearray": bytearray,
    "memoryview": memoryview,
    "BytesIO": io.BytesIO,
    "array": lambda content: np.frombuffer(content, np.uint8),
    "column": lambda content: np.frombuffer(content, np.uint8)[:, None],
    "tensor": lambda content: torch.tensor(list(content), dtype=torch.uint8),
    "URI": lambda content: f"data:video/mp4;base64,{base64.b64encode(content).decode()}",
    "file": lambda _: open("clip.mp4", "rb"),  # noqa: SIM115
    "path": lambda _: Path("clip.mp4"),
}


@pytest.mark.parametrize("how", HELD)
def test_how_a_clip_may_be_held(clip, how):
    held = HELD[how](clip.read_bytes())
    try:
        assert is_video(held)
        video = to_video(held, "held", start=1, end=2)
    finally:
        getattr(held, "close", lambda: None)()
    assert (video.size, video.count) == ((64, 48), 10)
    assert greys(video, [0, 5]) == pytest.approx([10, 15], abs=0.7)


def test_a_view_that_was_released_is_no_clip(clip):
    held = memoryview(clip.read_bytes())
    held.release()
    assert not is_video(held)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": "clip.mp4"}},
        {"type": "video_url", "video_url": "clip.mp4"},
        {"type": "video", "video": "clip.mp4"},
        {"type": "video", "path": "clip.mp4"},
        {"type": "video", "video": [np.zeros((48, 64, 3), np.uint8)] * 30},
    ],
)
def test_a_part_of_a_message_to_a_chat_model(clip, part):
    video = to_video(part, "part")
    assert (video.size, video.count) == ((64, 48), 30)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"GIF89a" + bytes(90), "held holds 96 bytes, but not those of a clip. Clips are"),
        (b"\0\0\0\x18ftypheic" + bytes(90), "but not those of a clip"),
        (io.BytesIO(b"none"), "held holds 4 bytes, but not those of a clip"),
        (io.StringIO("none"), "held gives str, not bytes. Open the file in binary mode"),
        (np.zeros(9, np.uint8), "held is not a video. Give the path"),
        ({"type": "video"}, "held is not a video"),
        ("data:image/png;base64,AAAA", "held is image/png, not a clip"),
        ("https://example.com/clip.mp4", "is an address, and clips are not downloaded. Download"),
    ],
)
def test_what_holds_no_clip(value, said):
    assert said in refused(ImageError, value, "held")


@pytest.mark.parametrize("text", ["Buy free milk", "All free?", "The widest", "a skip"])
def test_words_are_no_clips(text):
    assert clip_format(text.encode().ljust(512)) is None


def test_bytes_that_are_no_clip(clip):
    said = refused(ImageError, b"ffconcat version 1.0\nfile clip.mp4\n", "held")
    assert said.startswith("held holds 35 bytes, but not those of a clip. Clips are video/mp4,")
    assert "is damaged or no video" in refused(ImageError, clip.read_bytes()[:400], "held")


def test_a_pattern_is_the_one_clip_that_matches(clip, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    clip.rename(one / "x.mp4")
    (one / "notes.txt").write_text("no clip")
    for pattern in ("one/*.mp4", "one/*", one / "?.mp4"):
        assert to_video(pattern, "v").source.endswith("one/x.mp4")
    assert "no file in" in refused(ImageError, "*.mp4", "v")
    (one / "y.mp4").write_text("no clip")
    for pattern in ("one/*.mp4", "one/*"):
        assert refused(ImageError, pattern, "v") == (
            f"{pattern}: 2 files match, of which one/x.mp4 is the first; a question has one video. "
            "Name one of them."
        )
    assert refused(ImageError, "one", "v") == (
        "one is a folder. It holds *.mp4 (2). Name one of them."
    )
    assert to_video("one/x.mp4", "v").count == 30
    (one / "none").mkdir()
    assert refused(ImageError, "one/none", "v") == "one/none is a folder. It holds no clips."
    os.mkfifo("pipe.mp4")
    assert refused(ImageError, "pipe.mp4", "v") == "pipe.mp4 is a device or a pipe, not a clip."


def test_frames_that_are_none():
    assert refused(ImageError, [], "photos") == "photos holds no frames."
    assert refused(ImageError, np.zeros((0, 8, 8, 3)), "array") == "array holds no frames."
    assert "photos[1] is None" in refused(ImageError, [Image.new("L", (4, 4)), None], "photos")
    assert "is not a video" in refused(ImageError, np.zeros((8, 8, 3)), "array")
    assert "is not a video" in refused(ImageError, 3, "x")
    assert "3,000 frames" in refused(ImageError, np.zeros((3000, 1, 1, 3)), "array")
    assert "Only a clip" in refused(OptionError, [Image.new("L", (4, 4))], "photos", start=1)


def test_damage_in_the_middle_is_told(tmp_path):
    whole = bytearray(write_clip(tmp_path / "clip.avi", count=60).read_bytes())
    whole[len(whole) // 2 :] = b"\x00" * (len(whole) - len(whole) // 2)
    (tmp_path / "clip.avi").write_bytes(whole)
    try:
        video = to_video(tmp_path / "clip.avi", "v")
        assert len(video.frames(range(video.count), (8, 8))) == video.count
    except ImageError as error:
        assert "damaged" in str(error)  # noqa: PT017  either is a clear answer


def test_without_pyav_the_package_is_named(clip, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "av" else found(name)
    )
    said = refused(ImageError, "clip.mp4", "v")
    assert said == (
        "Reading a clip needs the package av, which is not installed. Install it with: pip "
        "install av"
    )


def test_names_of_clips():
    assert is_clip("a/B.MP4")
    assert not is_clip("mp4")
    assert not is_clip("a.gif")
