"""Ways to ask each kind of question, in English and Chinese.

Each kind has phrases to train on and phrases held out for evaluation. Fields in braces are
filled by `training.questions`; ``{where}`` becomes nothing or " in the picture" and the like.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CHINESE",
    "CHINESE_COLOURS",
    "CHINESE_SHAPES",
    "CHINESE_SIDES",
    "ENGLISH",
    "OUT_OF_SCOPE",
    "OUT_OF_SCOPE_FIELDS",
    "Phrases",
]


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
            "What colour has the {shape}{where}?",
            "The {shape}{where}, what colour is it?",
            "Tell me which colour the {shape} has.",
            "Do you know what colour the {shape} is?",
            "Say which colour the {shape} is.",
            "Please tell me the colour of the {shape}{where}.",
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
            "What colour is this?",
            "Tell me the colour.",
            "Which colour does it have?",
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
            "What is {colour}{where}?",
            "What is the {colour} thing{where}?",
            "Tell me which shape is {colour}.",
            "What shape does the {colour} object have?",
            "Can you tell me what shape is {colour}{where}?",
            "Please name the {colour} shape.",
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
            "Which shape is this?",
            "Tell me what shape this is.",
            "What is the shape?",
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
            "Does this image show {a_thing}?",
            "Does the image have any {things}?",
            "Tell me if there is {a_thing}{where}.",
            "Can you find {a_thing}{where}?",
            "Are {things} shown{where}?",
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
            "What colour is behind the shapes?",
            "Tell me which colour the background is.",
            "Do you know the colour of the background?",
            "Name the background colour.",
            "What background colour does the picture have?",
            "The background is what colour?",
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
            "Tell me how many shapes there are{where}.",
            "How many shapes does this image show?",
            "Count all shapes.",
            "What is the number of objects{where}?",
            "Can you count the shapes{where}?",
            "How many different objects do you see{where}?",
            "Can you see how many shapes there are{where}?",
            "How many shapes can be seen{where}?",
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
            "Number of {things}?",
            "Tell me how many {things} there are{where}.",
            "Can you count the {things}{where}?",
            "Can you see how many {things} there are{where}?",
            "How many {things} can be seen{where}?",
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
            "Is the {thing} big or small{where}?",
            "Would you say that the {thing} is small or large?",
            "Tell me if the {thing} is small or large.",
            "Name the size of the {thing}.",
            "Tell me how big the {thing} is.",
            "Is it a small {thing} or a large one?",
            "The {thing}, is it large or small?",
            "Can you tell me the size of the {thing}{where}?",
            "How big is the {thing}, would you say?",
            "Size of the {thing}?",
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
            "Which shape is larger than all others?",
            "Tell me which shape is the biggest.",
            "Which object is the largest{where}?",
        ),
        ("Name the biggest shape{where}.", "Which is the largest shape{where}?"),
    ),
    "smallest": Phrases(
        (
            "Which shape is the smallest{where}?",
            "What is the smallest shape{where}?",
            "Name the smallest shape.",
            "Which shape is smaller than all others?",
            "Tell me which shape is the smallest.",
            "Which object is the smallest{where}?",
        ),
        ("Which is the smallest shape{where}?",),
    ),
    "relation": Phrases(
        (
            "Is the {thing} {side} the {other}?",
            "Is the {thing} {side} the {other}{where}?",
            "Does the {thing} stand {side} the {other}?",
            "Do you see the {thing} {side} the {other}?",
            "Is it true that the {thing} is {side} the {other}?",
            "Would you say that the {thing} is {side} the {other}?",
            "Tell me if the {thing} is {side} the {other}.",
            "The {thing} is {side} the {other}, is it not?",
            "Can you find the {thing} {side} the {other}?",
            "Can you tell me if the {thing} is {side} the {other}{where}?",
        ),
        (
            "Can you see the {thing} {side} the {other}?",
            "Tell me, is the {thing} {side} the {other}?",
        ),
    ),
    "side": Phrases(
        (
            "Is the {thing} {choice} the {other}?",
            "Is the {thing} {choice} the {other}{where}?",
            "Does the {thing} stand {choice} the {other}?",
            "Would you say that the {thing} is {choice} the {other}?",
            "Tell me if the {thing} is {choice} the {other}.",
            "Can you tell me if the {thing} is {choice} the {other}?",
            "What is right: is the {thing} {choice} the {other}?",
        ),
        (
            "Do you see the {thing} {choice} the {other}?",
            "Tell me, is the {thing} {choice} the {other}?",
        ),
    ),
    "place": Phrases(
        (
            "Where is the {thing}{where}?",
            "Where do you see the {thing}?",
            "In which part of the picture is the {thing}?",
            "What is the position of the {thing}?",
            "Where is the {thing} placed?",
            "Where in the picture is the {thing}?",
            "Tell me the position of the {thing}{where}.",
            "Where does the {thing} stand?",
            "Can you tell me where the {thing} is?",
            "Position of the {thing}?",
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
            "Which digit is this?",
            "Tell me the digit{where}.",
            "What does the number say?",
            "Name the number{where}.",
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
            "Name the colour of the digit.",
            "Tell me which colour the number has.",
            "What colour does the number have{where}?",
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
            "Tell me what the picture shows.",
            "Tell me about this picture.",
            "Describe what you see{where}.",
            "Please describe what is shown.",
            "What do you see?",
            "Give a description of the image.",
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

CHINESE_SIDES = {
    "left": "左边", "right": "右边", "above": "上面", "below": "下面",
}  # fmt: skip

CHINESE: dict[str, Phrases] = {
    "colour": Phrases(
        (
            "{shape}是什么颜色？",
            "{shape}的颜色是什么？",
            "图中的{shape}是什么颜色？",
            "图中的{shape}是什么颜色的？",
            "请问{shape}是什么颜色？",
            "{shape}是哪种颜色？",
            "这个{shape}是什么颜色？",
            "图片里的{shape}是什么颜色？",
            "图中{shape}是哪种颜色的？",
            "{shape}有什么颜色？",
            "告诉我{shape}的颜色。",
            "说出{shape}的颜色。",
        ),
        ("{shape}是什么颜色的？", "图中{shape}的颜色是什么？"),
    ),
    "shape": Phrases(
        (
            "{colour}的图形是什么形状？",
            "{colour}的是什么形状？",
            "图中{colour}的图形是什么？",
            "哪个形状是{colour}的？",
            "{colour}的图形是什么？",
            "{colour}的是什么图形？",
            "图中{colour}的是什么形状？",
            "图片里{colour}的图形是什么形状？",
            "哪种图形是{colour}的？",
            "什么图形是{colour}的？",
            "请问{colour}的图形是什么形状？",
            "告诉我{colour}的图形是什么形状。",
        ),
        ("图中{colour}的图形是什么形状？", "哪个图形是{colour}的？"),
    ),
    "existence": Phrases(
        (
            "有{thing}吗？",
            "图中有{thing}吗？",
            "图中有没有{thing}？",
            "你看到{thing}了吗？",
            "这张图片里有没有{thing}？",
            "图片中有{thing}吗？",
            "请问图中有{thing}吗？",
            "你能看到{thing}吗？",
            "这里有{thing}吗？",
            "告诉我图中有没有{thing}。",
        ),
        ("图片里有{thing}吗？", "有没有{thing}？"),
    ),
    "background": Phrases(
        (
            "背景是什么颜色？",
            "背景的颜色是什么？",
            "图片的背景是什么颜色？",
            "图片的背景是什么颜色的？",
            "请问背景是什么颜色？",
            "背景是哪种颜色？",
            "图中背景的颜色是什么？",
            "这张图片的背景是什么颜色？",
            "告诉我背景的颜色。",
        ),
        ("背景是什么颜色的？", "图中的背景是什么颜色？"),
    ),
    "count": Phrases(
        (
            "有几个图形？",
            "图中有几个图形？",
            "图中有多少个图形？",
            "一共有几个图形？",
            "有多少个图形？",
            "图片中有多少个图形？",
            "请问有几个图形？",
            "你看到几个图形？",
            "数一数图形。",
            "这张图片里一共有几个图形？",
        ),
        ("图片里有几个图形？", "一共有多少个图形？"),
    ),
    "digit": Phrases(
        (
            "图中的数字是几？",
            "这是什么数字？",
            "图片里的数字是什么？",
            "图中是什么数字？",
            "你看到什么数字？",
            "请问这是几？",
            "这个数字是几？",
        ),
        ("数字是几？",),
    ),
    "description": Phrases(
        (
            "描述这张图片。",
            "图中有什么？",
            "你看到了什么？",
            "图片里有什么？",
            "请描述这张图片。",
            "这张图片里有什么？",
            "图片中有什么？",
            "描述一下图片。",
            "说说你看到了什么。",
        ),
        ("描述图片。", "你看到什么？"),
    ),
    "the shape": Phrases(
        ("这是什么形状？", "图中是什么形状？", "这个图形是什么？", "这是哪种图形？"),
        ("这是什么图形？",),
    ),
    "size": Phrases(
        (
            "{thing}是大还是小？",
            "{thing}大吗？",
            "{thing}有多大？",
            "图中的{thing}是大还是小？",
            "{thing}是大的还是小的？",
            "请问{thing}是大还是小？",
            "{thing}是小还是大？",
            "告诉我{thing}的大小。",
        ),
        ("{thing}的大小是什么？", "图片里的{thing}是大还是小？"),
    ),
    "relation": Phrases(
        (
            "{thing}在{other}的{side}吗？",
            "{thing}是在{other}的{side}吗？",
            "{thing}是不是在{other}的{side}？",
            "图中{thing}在{other}的{side}吗？",
            "请问{thing}在{other}{side}吗？",
            "{thing}在{other}的{side}，对吗？",
        ),
        ("{thing}在不在{other}的{side}？", "图片里{thing}在{other}的{side}吗？"),
    ),
    "side": Phrases(
        (
            "{thing}在{other}的{choice}？",
            "{thing}是在{other}的{choice}？",
            "图中{thing}在{other}的{choice}？",
            "请问{thing}在{other}的{choice}？",
        ),
        ("图片里{thing}在{other}的{choice}？",),
    ),
    "place": Phrases(
        (
            "{thing}在哪里？",
            "{thing}在图中的哪里？",
            "{thing}的位置在哪里？",
            "{thing}在哪儿？",
            "请问{thing}在哪里？",
            "图中的{thing}在哪里？",
            "告诉我{thing}在哪里。",
        ),
        ("{thing}在什么位置？", "图片里的{thing}在哪里？"),
    ),
}

_NOUNS = (
    "car", "man", "person", "house", "tree", "bird", "horse", "boat", "plane",
    "child", "boy", "flower", "fish", "cow", "hat", "shirt", "door", "table", "chair", "phone",
    "computer", "bottle", "cup", "apple", "banana", "pizza", "street", "river", "mountain", "lamp",
    "shoe", "bag", "ball", "clock", "monkey", "lion", "truck", "window", "road", "face", "hand",
    "letter", "word", "company", "actor", "teacher", "doctor", "king", "song", "movie", "city",
    "shop", "bridge", "kitchen", "garden", "beach", "cloud", "sun", "knife", "spoon", "bed",
)  # fmt: skip
_VERBS = (
    "run", "sleep", "eat", "walk", "play", "drive", "swim", "work", "sit", "smile", "jump", "cook",
    "fall", "drink", "dance", "shout", "cry", "fly", "laugh", "wait",
)  # fmt: skip
_NAMES = (
    "Germany", "Italy", "Japan", "Brazil", "Paris", "Rome", "Tokyo", "Einstein", "Mozart", "Anna",
    "Peter", "Google", "Monday", "Africa", "Shakespeare", "Chinese", "English", "Russian", "Mars",
    "Canada", "Berlin", "Mary", "Bach", "Ford", "Sweden",
)  # fmt: skip
_TASKS = (
    "Write {a_noun} for me.", "Write a poem about the {noun}.", "Write an email to {name}.",
    "Write a letter.", "Write a song about {name}.", "Tell me a joke about {name}.",
    "Tell me about the {noun}.", "Tell me something about {name}.", "Explain {name} to me.",
    "Explain how to {verb}.", "Translate this to {name}.", "Translate it into {name}, please.",
    "Translate the word {noun}.", "Summarize the text.", "Give me a recipe for {noun}.",
    "Give me three names for {a_noun}.", "Draw {a_noun}.", "Draw me a picture of {name}.",
    "Solve this: {a}+{b}.", "Compute {a} times {b}.", "Count to {a}.", "List the days of the week.",
    "Write a {name} sentence.", "Make a list of {noun}s.", "Help me {verb}.", "Please {verb}.",
    "Show me {a_noun}.", "Open the {noun}.", "Let us {verb}.", "Say something in {name}.",
)  # fmt: skip
_WHATS = (
    "What is the capital of {name}?", "What is {a}+{b}?", "What is {a} minus {b}?",
    "What is {a} plus {b}?", "How much is {a} times {b}?", "What is the root of {a}?",
    "What is the {noun} doing?", "What is the {noun} called?", "What is the {noun} made of?",
    "What is inside the {noun}?", "What is behind the {noun}?", "What brand is the {noun}?",
    "What kind of {noun} is this?", "What does the {noun} look like?", "What does {name} mean?",
    "What is the name of the {noun}?", "What is the {noun} for?", "What do you think of {name}?",
    "What time does the {noun} open?", "What day is it today?", "What year is it?",
    "What is the price of the {noun}?", "What is your name?", "What can you do?",
    "What is written on the {noun}?", "What language does {name} speak?", "What is {name}?",
    "What happens to the {noun}?", "What should I {verb}?", "What is the weather in {name}?",
    "What colour is the {noun}?", "What is the colour of the {noun}?", "What size is the {noun}?",
    "Which {noun} is the best?", "Which {noun} do you like?", "Which city is {name} in?",
    "Which animal can {verb}?", "Which of them can {verb}?", "Which is better, {name} or {noun}?",
)  # fmt: skip
_OTHERS = (
    "Who is {name}?", "Who made the {noun}?", "Who is the {noun}?", "Who wrote {name}?",
    "Who invented the {noun}?", "Who owns the {noun}?", "Who won against {name}?",
    "Whose {noun} is it?", "When was {name} born?", "When did the {noun} {verb}?",
    "When is the next {noun}?", "Where is the {noun}?", "Where is {name}?", "Where is it from?",
    "Where does the {noun} live?", "Where did you {verb}?", "Where was the {noun} made?",
    "Why does the {noun} {verb}?", "Why is the {noun} so big?", "Why did {name} {verb}?",
    "How old is the {noun}?", "How old is {name}?", "How far is {name}?", "How do I {verb}?",
    "How do you say {noun} in {name}?", "How does {a_noun} work?", "How is {name} today?",
    "How can I {verb} better?", "How long does the {noun} {verb}?", "How heavy is the {noun}?",
    "How many {noun}s are there?", "How many {noun}s do you see?", "How many days until {name}?",
    "How many people live in {name}?", "How much does the {noun} cost?", "How are you?",
    "Is the {noun} happy?", "Is the {noun} big or small?", "Is {name} nice?", "Is it {a_noun}?",
    "Is the {noun} real?", "Is there {a_noun}?", "Is there {a_noun} in the picture?",
    "Is this {a_noun}?", "Is this {a_noun} or {b_noun}?", "Is the {noun} in {name}?",
    "Is the {noun} next to the {thing}?", "Are there any {noun}s?", "Are you {name}?",
    "Are you a {noun}?", "Do you see {a_noun}?", "Do you see any {noun}s in the picture?",
    "Do you know {name}?", "Do you like the {noun}?", "Does the {noun} {verb}?", "Can you {verb}?",
    "Can the {noun} {verb}?", "Can you see the {noun}?", "Can you help me?", "Can it {verb}?",
    "Does it {verb}?", "Does {name} {verb}?", "Did {name} {verb}?", "Will it {verb} tomorrow?",
    "Should I {verb}?", "Would you like to {verb}?", "I like {name}.", "I want to {verb}.",
    "My {noun} is broken.", "The {noun} is nice.", "Hi {name}!", "Good night.", "Good evening!",
    "Bye!", "Thanks.", "Okay", "Hey, how is it going?", "Nice to meet you.", "test", "asdf",
)  # fmt: skip
_CHINESE_NOUNS = (
    "猫", "狗", "人", "汽车", "房子", "树", "鸟", "花", "鱼", "马", "船", "飞机", "孩子", "桌子",
    "椅子", "手机", "苹果", "山", "河", "男人", "老师", "门", "帽子", "车", "书包", "电脑",
)  # fmt: skip
_CHINESE_NAMES = (
    "法国",
    "德国",
    "日本",
    "北京",
    "上海",
    "小明",
    "美国",
    "伦敦",
    "英语",
    "爱因斯坦",
)
_CHINESE_OTHERS = (
    "图中有{noun}吗？", "有{noun}吗？", "你看到{noun}了吗？", "图中有几个{noun}？",
    "有多少{noun}？",
    "{noun}是什么颜色？", "{noun}在哪里？", "{noun}在做什么？", "{noun}多少钱？", "{noun}大吗？",
    "这是{noun}吗？", "{noun}好看吗？", "谁的{noun}？", "这是谁的{noun}？", "{noun}叫什么名字？",
    "{name}在哪里？", "{name}的首都是什么？", "{name}是谁？", "你喜欢{name}吗？",
    "你去过{name}吗？",
    "{name}的天气怎么样？", "翻译成{name}。", "你会说{name}吗？", "介绍一下{name}。", "写一封信。",
    "写一个关于{noun}的故事。", "画一个{noun}。", "请帮我。", "你几岁了？", "你叫什么名字？",
    "{a}加{b}等于几？", "{a}乘以{b}是多少？", "今天是星期几？", "为什么天是蓝的？", "谢谢", "再见",
    "早上好", "怎么做{noun}？", "给我一个菜谱。", "你会做什么？", "什么时候吃饭？",
    "明天会下雨吗？",
    "这个{noun}有多重？", "{noun}和{name}哪个好？", "谁发明了{noun}？", "什么品牌？",
)  # fmt: skip

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
            *_TASKS, *_WHATS, *_OTHERS,
        ),
        (
            "What is the capital of Spain?", "Write a story.", "Is this a car or a bus?",
            "Who wrote this book?", "How old are you?", "What is the cat doing?",
            "How many dogs are there?", "What time does the train leave?", "Good morning!",
            "Translate this to French.", "Is the woman happy?", "What is 3+5?",
            "Where can I buy it?", "Sing for us.", "Has the baby woken up?", "Was it raining?",
            "Which country won the war?", "Which team lost?", "What is she wearing?",
            "Does the sign say stop?", "Fix the bug in my program.", "Could it be an elephant?",
            "How tall is the tower?", "How many windows does the building have?", "Why?",
            "Are they friends?", "Recommend a restaurant.", "Is the soup hot?",
            "What colour are her eyes?", "Who is the president?", "Thank you very much!",
            "What is the difference between a frog and a toad?",
        ),
    ),
    "chinese": Phrases(
        (
            "今天天气怎么样？", "你是谁？", "写一首诗。", "这是什么动物？", "现在几点了？",
            "你好", "图中有猫吗？", *_CHINESE_OTHERS,
        ),
        (
            "这个人是谁？", "讲一个笑话。", "大象会飞吗？", "她在笑吗？", "老虎是什么颜色？",
            "图中有几只羊？", "哪个球队赢了？", "你喜欢音乐吗？", "西班牙有多远？", "晚上好",
        ),
    ),
}  # fmt: skip
"""Questions that a drawn scene does not answer. Those trained on have fields of their own."""

OUT_OF_SCOPE_FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "english": {"noun": _NOUNS, "verb": _VERBS, "name": _NAMES},
    "chinese": {"noun": _CHINESE_NOUNS, "name": _CHINESE_NAMES},
}
