"""Ways to ask what only the second demo is asked: boxes, two images, clips."""

from __future__ import annotations

from training.phrases import Phrases

__all__ = ["CHINESE", "ENGLISH"]

ENGLISH: dict[str, Phrases] = {
    "box": Phrases(
        (
            "Where is the {thing}?",
            "Where is the {thing} in the image?",
            "Where do you see the {thing}?",
            "Find the {thing}.",
            "Locate the {thing}.",
            "Mark the {thing}.",
            "Show me where the {thing} is.",
            "Give the bounding box of the {thing}.",
            "What is the box of the {thing}?",
            "Draw a box around the {thing}.",
            "Please find the {thing} in the picture.",
            "Tell me where the {thing} is.",
        ),
        ("Please locate the {thing}.", "Give me the box of the {thing}.", "Show me the {thing}."),
    ),
    "boxes": Phrases(
        (
            "Find all shapes.",
            "Find every shape in the image.",
            "Detect all shapes.",
            "Detect all objects.",
            "Locate all shapes.",
            "Give the boxes of all shapes as JSON.",
            "List all shapes with their boxes.",
            "Draw a box around every shape.",
            "Mark all objects.",
            "Where are the shapes?",
        ),
        ("Detect every shape.", "Locate all objects in the image.", "Mark every shape."),
    ),
    "which image": Phrases(
        (
            "Which image shows {a_thing}?",
            "Which image has {a_thing}?",
            "Which of the images shows {a_thing}?",
            "Which picture shows {a_thing}?",
            "In which image is there {a_thing}?",
            "In which image do you see {a_thing}?",
            "Which of the two images has {a_thing}?",
            "Where is there {a_thing}, in image 1 or in image 2?",
            "Tell me which image shows {a_thing}.",
            "Do both images show {a_thing}?",
            "Is there {a_thing} in both images?",
        ),
        ("Which of the two shows {a_thing}?", "In which picture is there {a_thing}?"),
    ),
    "more": Phrases(
        (
            "Which image shows more shapes?",
            "Which image has more shapes?",
            "Which of the images shows more objects?",
            "Which picture has more objects?",
            "In which image are there more shapes?",
            "Are there more shapes in image 1 or in image 2?",
            "Where do you see more shapes?",
            "Tell me which image has more shapes.",
        ),
        ("Which picture shows more shapes?", "In which image do you see more shapes?"),
    ),
    "colour in": Phrases(
        (
            "What colour is the {shape} in {image}?",
            "Which colour is the {shape} in {image}?",
            "What is the colour of the {shape} in {image}?",
            "What colour does the {shape} in {image} have?",
            "Tell me the colour of the {shape} in {image}.",
            "In {image}, what colour is the {shape}?",
        ),
        (
            "Which colour does the {shape} in {image} have?",
            "In {image}, which colour is the {shape}?",
        ),
    ),
    "count in": Phrases(
        (
            "How many shapes are in {image}?",
            "How many shapes are there in {image}?",
            "How many objects do you see in {image}?",
            "How many shapes does {image} show?",
            "Count the shapes in {image}.",
            "In {image}, how many shapes are there?",
        ),
        ("How many objects are in {image}?", "Tell me how many shapes {image} shows."),
    ),
    "box in": Phrases(
        (
            "Where is the {thing} in {image}?",
            "Find the {thing} in {image}.",
            "Locate the {thing} in {image}.",
            "Mark the {thing} in {image}.",
            "Give the box of the {thing} in {image}.",
            "In {image}, where is the {thing}?",
        ),
        ("Show me the {thing} in {image}.", "What is the box of the {thing} in {image}?"),
    ),
    "difference": Phrases(
        (
            "What is the difference?",
            "What is the difference between the images?",
            "What has changed?",
            "What changed between the two images?",
            "Compare the images.",
            "Compare the two images.",
            "How do the images differ?",
            "What is different in image 2?",
            "Spot the difference.",
            "Are the images the same?",
        ),
        ("What is different?", "How do the two images differ?", "Compare image 1 with image 2."),
    ),
    "motion": Phrases(
        (
            "Which way does the {shape} move?",
            "Where does the {shape} move?",
            "In which direction does the {shape} move?",
            "How does the {shape} move?",
            "Does the {shape} move?",
            "What does the {shape} do?",
            "Tell me how the {shape} moves.",
            "Which way is the {shape} moving?",
            "Where does the {shape} go?",
        ),
        ("Which direction does the {shape} move in?", "Tell me which way the {shape} moves."),
    ),
    "mover": Phrases(
        (
            "What moves?",
            "What is moving?",
            "Which shape moves?",
            "Which shape is moving?",
            "What happens in the video?",
            "What happens?",
            "Describe the clip.",
            "Describe the video.",
        ),
        ("What moves in the video?", "Tell me what happens."),
    ),
}

CHINESE: dict[str, Phrases] = {
    "box": Phrases(
        (
            "{thing}在哪里？",
            "图中{thing}在哪里？",
            "找出{thing}。",
            "请找出{thing}。",
            "标出{thing}。",
            "告诉我{thing}在哪里。",
        ),
        ("请标出{thing}。", "图中的{thing}在哪里？"),
    ),
    "more": Phrases(
        ("哪张图片有更多图形？", "哪张图片的图形更多？", "哪张图里的图形更多？"),
        ("哪张图有更多图形？",),
    ),
    "which image": Phrases(
        ("哪张图片有{thing}？", "哪张图里有{thing}？", "{thing}在哪张图片里？"),
        ("哪张图片里有{thing}？",),
    ),
}
