"""A clip in a cell: the frames that were seen stand above the answer, with their times."""

from __future__ import annotations

import importlib.util
import io
import json
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import tiny_native
from clips import write_clip
from IPython.utils.capture import capture_output
from PIL import Image

from glm4v_magic.calls.refusals import refuse_video
from glm4v_magic.core.errors import ConversationError, InputError, OptionError
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.images.video import to_video
from glm4v_magic.notebook.render.answers.video import MOST_SHOWN, video_bundle
from glm4v_magic.session.session import Session

SMALL = "--max-tokens 2 --temperature 0"
OPTIONS = {"temperature": 0, "max_tokens": 6, "repetition_penalty": 1.0}


@pytest.fixture
def clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_clip(tmp_path / "clip.mp4", count=30, fps=10)


@pytest.fixture
def loaded(run, native, clip):
    run(f"%glm4v load {native('glm46v')}")
    return run


def test_a_cell_shows_the_frames_with_their_times(loaded, shell):
    with capture_output() as captured:
        shell.run_cell(f"%%glm4v clip.mp4 --fps 2 --from 0:01 --to 0:02 {SMALL}\nWhat happens?")
    (strip,) = [each.data for each in captured.outputs if "clip.mp4" in each.data["text/plain"]]
    assert (
        strip["text/plain"]
        .splitlines()[0]
        .startswith("clip.mp4, 64 x 48 px · the model sees 2 frames of ")
    )
    assert strip["text/plain"].splitlines()[1] == "  at 0:01, 0:01.5"
    assert strip["text/html"].count("<img") == 2
    answer = shell.user_ns["_"]
    assert [frame.time for frame in answer.videos[0].seen] == [1.0, 1.5]
    assert "clip.mp4, 64 x 48 px" in loaded("%glm4v history")


def test_a_clip_of_one_frame_has_one_that_was_seen(loaded, shell, clip):
    write_clip(clip.with_name("one.mp4"), count=1)
    for words in ("clip.mp4 --from 2.85 --to 2.95", "one.mp4"):
        assert "the model sees 1 frame of" in loaded(f"%%glm4v {words} {SMALL}\nWhat?")
        assert len(shell.user_ns["_"].videos[0].seen) == 1
    loaded(f"%%glm4v --over one.* {SMALL}\nWhat?")
    assert len(shell.user_ns["_"][0].answer.videos[0].seen) == 1


def test_a_chat_file_for_reading_names_the_video(loaded, clip):
    loaded(f"%%glm4v clip.mp4 --fps 2 {SMALL}\nWhat happens?")
    loaded("%glm4v export a.md")
    assert "*clip.mp4, 64 x 48 px, video*" in clip.with_name("a.md").read_text()


def test_an_array_in_a_variable_is_a_video(loaded, shell):
    shell.user_ns["scene"] = np.zeros((3, 40, 60, 3), np.uint8)
    said = loaded(f"%%glm4v scene --fps 2 {SMALL}\nWhat happens?")
    assert "scene, 60 x 40 px · the model sees 3 frames of" in said
    assert "at 0:00, 0:00.5, 0:01" in said


HELD = {
    "name": str,
    "path": lambda clip: clip,
    "bytes": lambda clip: clip.read_bytes(),
    "buffer": lambda clip: io.BytesIO(clip.read_bytes()),
    "array": lambda clip: np.fromfile(clip, np.uint8),
}


@pytest.mark.parametrize("how", HELD)
def test_a_clip_in_a_variable(loaded, shell, clip, how):
    shell.user_ns["held"] = HELD[how](clip)
    loaded(f"%%glm4v held --fps 2 --from 0:01 --to 0:02 {SMALL}\nWhat happens?")
    assert [frame.time for frame in shell.user_ns["_"].videos[0].seen] == [1.0, 1.5]
    shell.user_ns["rows"] = [HELD[how](clip)]
    loaded(f"%%glm4v --over rows --fps 2 {SMALL}\nWhat happens?")
    (row,) = shell.user_ns["_"]
    assert row.error is None
    assert row.answer.videos[0].seen


def test_a_clip_among_images_is_asked_about_as_the_message_says(loaded, shell, clip):
    shell.user_ns["mixed"] = ["clip.mp4"]
    said = loaded(f"%%glm4v mixed {SMALL}\nWhat?", fails=True)
    assert "mixed[0]: clip.mp4 is a video. Name it by itself: its file (.mp4), or a var" in said
    assert "Or save one of its frames as a PNG." in said
    (frame,) = to_video("clip.mp4", "v").frames([3], (64, 48))
    frame.image.image.save("frame.png")
    shell.user_ns["held"], shell.user_ns["content"] = "clip.mp4", clip.read_bytes()
    for words, videos in (("clip.mp4", 1), ("held", 1), ("content", 1), ("frame.png", 0)):
        loaded(f"%%glm4v {words} {SMALL}\nWhat?")
        assert len(shell.user_ns["_"].videos) == videos


def test_a_clip_among_images_in_python(native, clip):
    session = Session().load(str(native("glm46v")))
    for given in (["clip.mp4"], [clip.read_bytes()], clip):
        with pytest.raises(
            InputError, match=r"is a video\. Ask about it as a video: video=\.\.\.,"
        ):
            session.ask("What?", given, **OPTIONS)
        video = given[0] if isinstance(given, list) else given
        assert session.ask("What?", video=video, **OPTIONS).videos
    (frame,) = to_video("clip.mp4", "v").frames([3], (64, 48))
    frame.image.image.save("frame.png")
    assert session.ask("What?", ["frame.png"], **OPTIONS).images
    session.unload()


def test_a_list_is_one_of_frames_with_their_rate(loaded, shell):
    shell.user_ns["frames"] = [tiny_native.image(60, 40, seed).image for seed in range(3)]
    said = loaded(f"%%glm4v frames --fps 2 {SMALL}\nWhat happens?")
    assert "frames, 60 x 40 px · the model sees 3 frames of" in said
    assert "at 0:00, 0:00.5, 0:01" in said
    loaded(f"%%glm4v frames {SMALL}\nWhat?")
    assert len(shell.user_ns["_"].images) == 3
    loaded(f"%%glm4v frames clip.mp4 --fps 2 {SMALL}\nWhat?")  # the rate is of the clip
    assert len(shell.user_ns["_"].images) == 3
    for words in ("frames[0]", "frames frames"):
        assert "video" in loaded(f"%%glm4v {words} --fps 2 {SMALL}\nWhat?", fails=True)
    for none in ([], (), np.zeros((0, 8, 8, 3), np.uint8)):
        shell.user_ns["none"] = none
        assert "none holds no frames" in loaded(f"%%glm4v none --fps 2 {SMALL}\nWhat?", fails=True)


def test_a_clip_that_is_too_long_is_looked_at_less_often(run, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "long.mp4", count=900, fps=30)
    run("%glm4v load demo-4.6v")
    said = run(f"%%glm4v long.mp4 --fps 30 {SMALL}\nWhat?", fails=True)
    assert "tokens long, but demo-4.6v holds 2048 with the answer. Look at fewer frames" in said
    (rate, begin, end) = re.search(r"\((--fps 1)\).*\((--from), (--to)\)", said).groups()
    run(f"%%glm4v long.mp4 {rate} {SMALL}\nWhat?")
    run(f"%%glm4v long.mp4 --fps 30 {begin} 1 {end} 2 {SMALL}\nWhat?")
    shell.user_ns["images"] = [Image.new("RGB", (560, 560))] * 90
    question = "word " * 150
    said = run(f"%%glm4v images {SMALL}\n{question}", fails=True)
    assert "holds 2048 with the answer. Ask about fewer images at once." in said
    run(f"%%glm4v images[:3] {SMALL}\n{question}")


def test_a_row_may_be_a_clip_among_images(loaded, shell, clip):
    for name in ("a.png", "b.png", "c.png"):
        tiny_native.image(60, 40, 1).image.save(clip.with_name(name))
    shell.user_ns["rows"] = [["a.png", "clip.mp4", "b.png"], ("clip.mp4",), ["a.png"], "clip.mp4"]
    loaded(f"%%glm4v c.png --over rows --fps 2 {SMALL}\nWhat happens?")
    rows = shell.user_ns["_"]
    assert [row.error for row in rows] == [None] * 4
    assert [row.name for row in rows] == ["a.png, clip.mp4, b.png", "clip.mp4", "a.png", "clip.mp4"]
    alone = loaded(f"%%glm4v c.png a.png clip.mp4 b.png --fps 2 {SMALL}\nWhat happens?")
    answer = shell.user_ns["_"]
    assert answer.text == rows[0].text, alone
    assert answer.usage.prompt_tokens == rows[0].answer.usage.prompt_tokens
    said = loaded("%%glm4v c.png --over rows --fps 2 --preview\nWhat happens?")
    assert re.search(r"(<\|image\|>.*){2}<\|video\|>.*<\|image\|>", said, re.DOTALL)
    shell.user_ns["rows"] = [["clip.mp4", "clip.mp4"]]
    said = loaded(f"%%glm4v --over rows {SMALL}\nWhat happens?", fails=True)
    assert "The only row failed: clip.mp4, clip.mp4 has 2 videos; a question has one." in said
    shell.user_ns["rows"] = [["a.png", "gone.mp4"]]
    said = loaded(f"%%glm4v --over rows {SMALL}\nWhat happens?", fails=True)
    assert "gone.mp4: no such file" in said


def test_a_column_of_clips_is_asked_about(loaded, shell):
    shell.user_ns["clips"] = pd.DataFrame({"n": [1, 2], "clip": ["clip.mp4", None]})
    loaded(f"%%glm4v --over clips --fps 2 {SMALL}\nWhat happens {{{{row.n}}}}?")
    assert shell.user_ns["_"].answer.notna().tolist() == [True, False]


def test_a_preview_counts_the_frames(loaded):
    said = loaded("%%glm4v cl*.mp4 --fps 2 --preview\nWhat happens?")  # a pattern names it, too
    assert "the model sees 6 frames" in said
    assert "<|video|>" in said
    assert " visual" in said
    assert "+ 0 visual" not in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("clip.mp4 --from 1:00", "clip.mp4 ends at 0:03, and is to be seen from 1:00 on."),
        ("clip.mp4 --from 2 --to 1", "from 0:02 to 0:01, which is no time"),
        ("clip.mp4 other.mp4", "clip.mp4 and other.mp4 are two videos"),
        ("*.mp4", "clip.mp4 and text.mp4 are two videos; a question has one"),
        ("*.mp4 clip.mp4", "clip.mp4, text.mp4 ...: 3 videos; a question has one"),
        ("gone.mp4", "gone.mp4: no such file"),
        ("gone*.mp4", "matches. It holds *.mp4 (2)."),
        (
            "text.mp4",
            "text.mp4 is damaged or no video: Invalid data found when processing input. Download",
        ),
        ("clip.mp4 --fps 0", "must be a number above 0"),
        ("clip.mp4 --from x", "'x' is not a time, such as 80 or 1:20. See %glm4v help."),
        ("--to 1:00", "--to is about a video, and there is none on this line"),
        ("--over many --fps 1", "--fps is about a video, and the rows have none"),
        (
            "clip.mp4 --from 1:99",
            "'1:99' is not a time: behind a colon, minutes and seconds end at",
        ),
        ("clip.mp4 --from 1:60:00", "is not a time"),
    ],
)
def test_what_cannot_be_seen_is_said_in_one_line(loaded, shell, clip, line, said):
    clip.with_name("text.mp4").write_text("no clip")
    shell.user_ns["many"] = [np.zeros((40, 60, 3), np.uint8)]
    message = loaded(f"%%glm4v {line}\nWhat happens?", fails=True)
    assert said in message
    assert "Traceback" not in message
    assert "the model sees" in loaded(f"%%glm4v clip.mp4 {SMALL}\nAnd now?")  # nothing is lost


@pytest.mark.parametrize("kind", ["demo", "glm_ocr"])
def test_a_model_that_takes_none_says_so_before_anything_is_read(run, native, clip, kind):
    run(f"%glm4v load {kind if kind == 'demo' else native(kind)}")
    clip.write_bytes(b"no clip")
    said = run("%%glm4v clip.mp4\nWhat happens?", fails=True)
    assert "takes no video" in said
    assert "single frames" in said
    with pytest.raises(ConversationError, match="takes no video"):
        Session().load(str(native("glm_ocr"))).ask("What?", video="gone.mp4")


def test_servers_are_sent_none():
    with pytest.raises(ConversationError, match="m is on a server, and videos are not sent to"):
        refuse_video("m", None)


def test_a_model_that_is_not_loaded_yet_says_so_before_it_is(clip, native):
    session = Session()
    with pytest.raises(ConversationError, match="takes no video"):
        session.ask("What?", video="clip.mp4", model="demo")
    assert session.status().info is None


def test_without_pyav_its_package_is_named(loaded, monkeypatch):
    found = importlib.util.find_spec
    with monkeypatch.context() as patched:
        patched.setattr(
            importlib.util, "find_spec", lambda name, *a: None if name == "av" else found(name, *a)
        )
        said = loaded("%%glm4v clip.mp4\nWhat happens?", fails=True)
    assert "pip install av" in said


@pytest.mark.parametrize("kind", ["glm4v", "glm46v", "glmga", "glm4v_moe"])
def test_a_follow_up_is_answered_as_if_nothing_was_kept(native, kind):
    frames = [tiny_native.noise(60, 40, seed) for seed in range(4)]
    photo = tiny_native.image(90, 60, 9)

    def answers(keep):
        session = Session().load(str(native(kind)), keep=keep)
        first = session.ask("What?", [photo], frames, fps=2, chat="c", **OPTIONS)
        second = session.ask("And then?", chat="c", **OPTIONS)
        kept = session.status().kept
        session.unload()
        assert len(first.seen) == 1
        return first.text, second.text, kept

    first, second, kept = answers(0.5)
    assert (first, second) == answers(0)[:2]
    assert kept.images == 3  # two pairs of frames, and the image


def test_options_without_a_video(native):
    with pytest.raises(OptionError, match="fps is about a video"):
        Session().ask("What?", fps=2)


@pytest.mark.parametrize("kind", ["glm4v", "glm46v"])
def test_a_chat_with_a_video_goes_on_from_its_file(native, clip, kind):
    photo = tiny_native.image(90, 60, 9)
    session = Session().load(str(native(kind)))
    first = session.ask("What?", [photo], "clip.mp4", 0, end=2.5, chat="c", **OPTIONS)
    session.export_chat("c.json")
    clip.unlink()  # the frames that were seen are in the file
    again = Session().load(str(native(kind)))
    again.import_chat("c.json")
    again.export_chat("d.json", "c")  # before anything has seen it
    assert clip.with_name("d.json").read_text() == clip.with_name("c.json").read_text()
    answers = [each.ask("And then?", chat="c", **OPTIONS) for each in (session, again)]
    assert answers[0].text == answers[1].text
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens
    (video,) = answers[1].videos
    assert [f.time for f in video.seen] == [f.time for f in first.videos[0].seen]
    assert (video.source, video.size) == ("clip.mp4", (64, 48))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": []}, "frames"),
        ({"fps": 0}, "fps"),
        ({"frames": [{"time": -1, "png": ""}]}, "time"),
        ({"frames": [{"time": 0.0, "png": "eA=="}]}, "clip.mp4 at 0:00"),
    ],
)
def test_a_chat_file_with_a_damaged_video_is_refused(native, clip, change, said):
    session = Session().load(str(native("glm4v")))
    session.ask("What?", video="clip.mp4", end=1, chat="c", **OPTIONS)
    file = session.export_chat("c.json")
    chat = json.loads(file.read_text())
    chat["messages"][0]["videos"][0].update(change)
    file.write_text(json.dumps(chat))
    with pytest.raises(InputError, match=said):
        session.import_chat("c.json")


def test_the_prompt_has_image_and_video_in_the_order_of_the_line(loaded, clip):
    Image.new("RGB", (60, 40), "red").save(clip.with_name("red.png"))

    def order(words):
        said = loaded(f"%%glm4v {words} --preview\nWhat happens?")
        return [said.index(f"<|{kind}|>") for kind in ("image", "video")]

    first, second = order("clip.mp4 red.png"), order("red.png clip.mp4")
    assert first[1] < first[0]
    assert second[0] < second[1]
    said = loaded(f"%%glm4v red.png clip.mp4 red.png {SMALL}\nWhat happens?")
    assert said.index("red.png") < said.index("clip.mp4") < said.rindex("red.png")
    assert "Traceback" not in said
    shown = loaded("%glm4v history")
    assert shown.index("red.png") < shown.index("clip.mp4") < shown.rindex("red.png")


def test_the_place_of_a_video_in_python(native, clip):
    photo = tiny_native.image(90, 60, 9)
    session = Session()
    draft = session.draft("What?", [photo], "clip.mp4", 0)
    assert draft.messages[-1].media == (draft.videos[0], photo)
    assert session.draft("What?", [photo], "clip.mp4").messages[-1].media[0] == photo
    with pytest.raises(OptionError, match="before_video is 2, but there are 1 images"):
        session.draft("What?", [photo], "clip.mp4", 2)
    with pytest.raises(OptionError, match="before_video is 0, but there is no video"):
        session.draft("What?", [photo], before_video=0)


class TestOver:
    @pytest.fixture
    def clips(self, clip):
        folder = clip.with_name("clips")
        folder.mkdir()
        for number in (1, 2, 10):
            write_clip(folder / f"{number}.mp4", count=10 + number, fps=10)
        return folder

    def test_each_clip_of_a_folder_is_a_row(self, loaded, shell, clips):
        said = loaded(f"%%glm4v --over clips/ --fps 2 {SMALL}\nWhat happens?")
        assert "3 of 3 rows answered" in said
        rows = shell.user_ns["_"]
        assert [row.name for row in rows] == [f"clips/{n}.mp4" for n in (1, 2, 10)]
        assert [len(row.answer.videos[0].seen) for row in rows] == [2, 2, 4]
        assert rows[0].answer.videos[0].seen[0].image.image.width <= 64
        assert "3 of 3 rows answered" in loaded(f"%%glm4v --over clips/*.mp4 {SMALL}\nWhat?")

    def test_a_row_is_answered_as_if_it_were_asked_alone(self, native, clips):
        session = Session().load(str(native("glm46v")))
        rows = session.map("What?", str(clips), fps=2, **OPTIONS)
        for row in rows:
            alone = session.ask("What?", video=row.item, fps=2, **OPTIONS)
            assert row.answer.text == alone.text

    def test_answers_are_reused_while_the_clip_is_the_same(self, native, clips):
        session = Session().load(str(native("glm46v")))
        mapped = partial(session.map, "What?", str(clips), **OPTIONS)
        assert not any(row.reused for row in mapped())
        assert all(row.reused for row in mapped())
        assert not any(row.reused for row in mapped(fps=5))
        write_clip(clips / "2.mp4", count=29, fps=10)
        assert [row.reused for row in mapped()] == [True, False, True]

    def test_a_damaged_clip_keeps_its_error_in_its_row(self, loaded, shell, clips):
        (clips / "2.mp4").write_bytes(b"no clip")
        said = loaded(f"%%glm4v --over clips {SMALL}\nWhat happens?")
        assert "2 of 3 rows answered" in said
        assert "damaged or no video" in str(shell.user_ns["_"][1].error)

    def test_a_model_that_takes_none_is_not_loaded_for_it(self, clips):
        session = Session()
        with pytest.raises(ConversationError, match="demo takes no video"):
            session.map("What happens?", str(clips), model="demo")
        assert session.status().info is None

    def test_images_of_a_folder_come_without_its_clips(self, loaded, clips):
        Image.new("RGB", (60, 40), "red").save(clips / "red.png")
        said = loaded(f"%%glm4v --over clips/ --fps 2 {SMALL}\nWhat happens?", fails=True)
        assert "--fps is about a video, and the rows have none" in said
        assert "1 of 1 row answered" in loaded(f"%%glm4v --over clips/ {SMALL}\nWhat?")

    def test_one_clip_goes_with_every_row(self, loaded, native, shell, clips):
        Image.new("RGB", (60, 40), "red").save(clips / "red.png")
        line = "clips/red.png clips/1.mp4 clips/red.png --over [1,2] --fps 2"
        said = loaded(f"%%glm4v {line} {SMALL} --raw\nIs it it?", fails=True)
        assert "The items of [1,2] are numbers" in said
        assert "Write {{item}}" in said
        loaded(f"%%glm4v {line} --temperature 0 --max-tokens 4\nIs it {{{{item}}}}?")
        rows = shell.user_ns["_"]
        session = Session().load(str(native("glm46v")))
        red = [str(clips / "red.png")] * 2
        for row in rows:
            assert [len(each.seen) for each in row.answer.videos] == [2]
            options = {"temperature": 0, "max_tokens": 4, "fps": 2}
            alone = session.ask(row.prompt, red, str(clips / "1.mp4"), 1, **options)
            assert row.answer.text == alone.text
        mapped = session.map(
            "Is it {{item}}?", [1, 2], images=red, video=str(clips / "1.mp4"), before_video=1,
            **options,
        )  # fmt: skip
        assert [row.answer.text for row in mapped] == [row.answer.text for row in rows]
        with pytest.raises(OptionError, match="before_video is 3, but there are 2 images"):
            session.map("{{item}}?", [1], images=red, video="gone.mp4", before_video=3)

    def test_one_clip_and_a_row_that_is_another_are_too_many(self, loaded, clips):
        said = loaded("%%glm4v clips/1.mp4 --over clips/2*.mp4\nWhat?", fails=True)
        assert "clips/1.mp4 is a video, and so are rows of --over; a question has one" in said
        with pytest.raises(OptionError, match="a question has one"):
            Session().map("What?", [str(clips / "2.mp4")], video=str(clips / "1.mp4"))

    def test_a_model_without_video_says_so_before_the_clip_is_read(self, loaded, clips):
        loaded("%glm4v load demo")
        said = loaded("%%glm4v gone.mp4 --over [1,2]\nIs it {{item}}?", fails=True)
        assert "demo takes no video" in said

    def test_a_preview_of_the_first(self, loaded, clips):
        said = loaded("%%glm4v --over clips/ --fps 2 --preview\nWhat happens?")
        assert "1.mp4" in said
        assert "the model sees 2 frames" in said


def test_of_many_frames_some_are_shown_and_names_are_escaped():
    def read(indices, size):
        return (Image.new("RGB", size) for _ in indices)

    video = SourcedVideo("<b>.mp4", (8, 8), 300, 1.0, read)
    video.frames(range(300), (8, 8))
    shown = video_bundle([video])
    assert shown["text/html"].count("<img") == MOST_SHOWN
    assert "<b>" not in shown["text/html"]
    assert "the model sees 300 frames" in shown["text/plain"]
    assert "from 0:00 to 4:59" in shown["text/plain"]


def test_a_clip_of_hours_is_seen_in_few_frames(native, tmp_path):
    from glm4v_magic.checkpoints import resolve
    from glm4v_magic.core.conversation import Conversation, Message

    long = write_clip(tmp_path / "long.mkv", count=7300, fps=1, size=(16, 16), keyframes=50)
    video = to_video(long, "long")
    processor = resolve(native("glm46v")).processor()
    processor.encode(Conversation((Message("user", "What?", videos=(video,)),)))
    assert len(video.seen) == 640
    assert video.duration > 7200
