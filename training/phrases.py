"""Ways to ask each kind of question, in English and Chinese.

Each kind has phrases to train on and phrases held out for evaluation. Fields in braces are
filled by `training.questions`; ``{where}`` becomes nothing or " in the picture" and the like.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CHINESE", "CHINESE_COLOURS", "CHINESE_SHAPES", "ENGLISH", "OUT_OF_SCOPE", "Phrases"]


@dataclass(frozen=True, slots=True)
class Phrases:
    """Phrases of one kind: those trained on and those kept for evaluation."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


ENGLISH: dict[str, Phrases] = {
    "colour": Phrases(
        (
            "What colour is the {shape}{where}?",
            "What is the colour of the {shape}{where}?",
            "What's the colour of the {shape}{where}?",
            "Which colour is the {shape}{where}?",
            "Which colour does the {shape} have?",
            "Tell me the colour of the {shape}{where}.",
            "Can you tell me what colour the {shape} is?",
            "Name the colour of the {shape}{where}.",
            "The {shape} is what colour?",
            "Colour of the {shape}?",
        ),
        (
            "What colour does the {shape} have?",
            "Tell me what colour the {shape} is.",
            "Please name the colour of the {shape}.",
        ),
    ),
    "the colour": Phrases(
        (
            "What colour is the shape{where}?",
            "What colour is it?",
            "What is the colour of the shape?",
            "Which colour do you see?",
            "What colour is the object{where}?",
        ),
        ("Which colour is the shape{where}?", "What is the colour of the object{where}?"),
    ),
    "shape": Phrases(
        (
            "What shape is {colour}{where}?",
            "Which shape is {colour}{where}?",
            "What is the {colour} shape{where}?",
            "What shape is the {colour} object{where}?",
            "What shape is the {colour} one?",
            "What is the shape of the {colour} object?",
            "What kind of shape is the {colour} object?",
            "Tell me the shape of the {colour} object{where}.",
            "Name the {colour} shape{where}.",
            "Which shape has the colour {colour}?",
            "Which {colour} shape do you see{where}?",
        ),
        (
            "What {colour} shape do you see{where}?",
            "Which shape is the {colour} object{where}?",
            "Tell me what shape is {colour}.",
        ),
    ),
    "the shape": Phrases(
        (
            "What shape is this?",
            "What shape is it?",
            "Which shape do you see{where}?",
            "What shape is shown{where}?",
            "What kind of shape is this?",
            "Name the shape.",
        ),
        ("What shape do you see{where}?", "Which shape is shown{where}?"),
    ),
    "existence": Phrases(
        (
            "Is there {a_thing}{where}?",
            "Do you see {a_thing}{where}?",
            "Can you see {a_thing}{where}?",
            "Does the image contain {a_thing}?",
            "Does the picture show {a_thing}?",
            "Does this picture have {a_thing}?",
            "Is {a_thing} shown{where}?",
            "Are there any {things}{where}?",
            "Do you see any {things}{where}?",
            "Is there any {thing}{where}?",
        ),
        (
            "Does the picture contain {a_thing}?",
            "Can you see any {things}{where}?",
            "Tell me, is there {a_thing}{where}?",
        ),
    ),
    "background": Phrases(
        (
            "What colour is the background{where}?",
            "What is the background colour{where}?",
            "What's the background colour?",
            "Which colour is the background?",
            "Which colour does the background have?",
            "What is the colour of the background{where}?",
            "Tell me the background colour.",
            "Background colour?",
        ),
        (
            "Name the colour of the background.",
            "What colour does the background have?",
            "Can you tell me what colour the background is?",
        ),
    ),
    "count": Phrases(
        (
            "How many shapes are there{where}?",
            "How many shapes do you see{where}?",
            "How many objects are there{where}?",
            "How many objects do you see?",
            "How many things are there{where}?",
            "Count the shapes{where}.",
            "What is the number of shapes{where}?",
            "How many shapes does the picture have?",
            "Number of shapes?",
        ),
        (
            "Count the objects{where}.",
            "How many shapes can you see{where}?",
            "Tell me the number of shapes.",
        ),
    ),
    "count of": Phrases(
        (
            "How many {things} are there{where}?",
            "How many {things} do you see{where}?",
            "Count the {things}{where}.",
            "What is the number of {things}?",
        ),
        ("How many {things} can you see{where}?", "Tell me the number of {things}."),
    ),
    "size": Phrases(
        (
            "Is the {thing} small or large?",
            "What size is the {thing}?",
            "What size does the {thing} have?",
            "How big is the {thing}{where}?",
            "How large is the {thing}?",
            "What is the size of the {thing}?",
            "Is the {thing} large or small?",
        ),
        ("Tell me the size of the {thing}.", "How big is the {thing}, small or large?"),
    ),
    "largest": Phrases(
        (
            "Which shape is the largest{where}?",
            "What is the biggest shape{where}?",
            "Which shape is the biggest?",
            "What is the largest shape?",
            "Name the largest shape.",
        ),
        ("Name the biggest shape{where}.", "Which is the largest shape{where}?"),
    ),
    "smallest": Phrases(
        (
            "Which shape is the smallest{where}?",
            "What is the smallest shape{where}?",
            "Name the smallest shape.",
        ),
        ("Which is the smallest shape{where}?",),
    ),
    "relation": Phrases(
        (
            "Is the {thing} {side} the {other}?",
            "Is the {thing} {side} the {other}{where}?",
            "Does the {thing} stand {side} the {other}?",
            "Do you see the {thing} {side} the {other}?",
        ),
        (
            "Can you see the {thing} {side} the {other}?",
            "Tell me, is the {thing} {side} the {other}?",
        ),
    ),
    "place": Phrases(
        (
            "Where is the {thing}{where}?",
            "Where do you see the {thing}?",
            "In which part of the picture is the {thing}?",
            "What is the position of the {thing}?",
        ),
        ("Tell me where the {thing} is.", "Where can you see the {thing}?"),
    ),
    "digit": Phrases(
        (
            "What digit is shown{where}?",
            "Which digit do you see{where}?",
            "What number is this?",
            "What number is shown{where}?",
            "Which number is written{where}?",
            "What digit is this?",
            "Read the digit.",
            "Read the number{where}.",
        ),
        ("Which digit is shown{where}?", "What number do you see{where}?"),
    ),
    "digit colour": Phrases(
        (
            "What colour is the digit{where}?",
            "What is the colour of the digit?",
            "Which colour is the number{where}?",
            "What colour is the number{where}?",
            "Which colour does the digit have?",
        ),
        ("What is the colour of the number{where}?", "Tell me the colour of the digit."),
    ),
    "description": Phrases(
        (
            "Describe the picture.",
            "Describe this image.",
            "What do you see{where}?",
            "What is in the picture?",
            "What is in this image?",
            "What is shown{where}?",
            "Describe the image in one sentence.",
            "What does the picture show?",
            "What is this?",
        ),
        ("Tell me what you see.", "What can you see{where}?", "Please describe the picture."),
    ),
}

CHINESE_COLOURS = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "orange": "橙色",
    "purple": "紫色", "pink": "粉色", "brown": "棕色", "black": "黑色", "white": "白色",
    "gray": "灰色", "cyan": "青色",
}  # fmt: skip
CHINESE_SHAPES = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星形",
    "diamond": "菱形", "cross": "十字形", "ring": "圆环", "heart": "心形", "rectangle": "长方形",
}  # fmt: skip

CHINESE: dict[str, Phrases] = {
    "colour": Phrases(
        ("{shape}是什么颜色？", "{shape}的颜色是什么？", "图中的{shape}是什么颜色？"),
        ("{shape}是什么颜色的？", "图中{shape}的颜色是什么？"),
    ),
    "shape": Phrases(
        (
            "{colour}的图形是什么形状？",
            "{colour}的是什么形状？",
            "图中{colour}的图形是什么？",
            "哪个形状是{colour}的？",
        ),
        ("图中{colour}的图形是什么形状？", "哪个图形是{colour}的？"),
    ),
    "existence": Phrases(
        ("有{thing}吗？", "图中有{thing}吗？", "图中有没有{thing}？", "你看到{thing}了吗？"),
        ("图片里有{thing}吗？", "有没有{thing}？"),
    ),
    "background": Phrases(
        ("背景是什么颜色？", "背景的颜色是什么？", "图片的背景是什么颜色？"),
        ("背景是什么颜色的？", "图中的背景是什么颜色？"),
    ),
    "count": Phrases(
        ("有几个图形？", "图中有几个图形？", "图中有多少个图形？", "一共有几个图形？"),
        ("图片里有几个图形？", "一共有多少个图形？"),
    ),
    "digit": Phrases(
        ("图中的数字是几？", "这是什么数字？", "图片里的数字是什么？"), ("数字是几？",)
    ),
    "description": Phrases(
        ("描述这张图片。", "图中有什么？", "你看到了什么？", "图片里有什么？"),
        ("描述图片。", "你看到什么？"),
    ),
}

OUT_OF_SCOPE: dict[str, Phrases] = {
    "english": Phrases(
        (
            "What is the capital of France?", "Who are you?", "Write a poem.", "Tell me a joke.",
            "How old is the person?", "Is this a dog or a cat?", "What is 2+2?", "Hello!", "Hi",
            "Translate this to German.", "What time is it?", "What brand is the car?",
            "Who painted this?", "What is the weather like?", "Where was this photo taken?",
            "Write Python code to sort a list.", "What animal is this?", "Is the man happy?",
            "What is the name of this person?", "Summarize the article.", "Why is the sky blue?",
            "Explain quantum physics.", "How much does it cost?", "What food is on the plate?",
            "What is the title of the book?", "Solve the equation.", "What language is this?",
            "Give me a recipe.", "What is the plot about?", "Who is in the picture?",
            "What is the dog doing?", "How many people are there?", "Is there a cat?",
            "Do you see a car in the picture?", "What colour is the car?", "Where is the dog?",
            "What colour is the dog?", "Is the house big?", "How many cats do you see?",
        ),
        (
            "What is the capital of Spain?", "Write a story.", "Is this a car or a bus?",
            "Who wrote this book?", "How old are you?", "What is the cat doing?",
            "How many dogs are there?", "What time does the train leave?", "Good morning!",
            "Translate this to French.", "Is the woman happy?", "What is 3+5?",
        ),
    ),
    "chinese": Phrases(
        (
            "今天天气怎么样？", "你是谁？", "写一首诗。", "这是什么动物？", "现在几点了？",
            "你好", "图中有猫吗？",
        ),
        ("这个人是谁？", "讲一个笑话。"),
    ),
}  # fmt: skip
