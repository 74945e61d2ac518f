"""The fast tokenizer against tiktoken, for which the published file is written."""

from __future__ import annotations

import base64

import golden
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from glm4v_magic.checkpoints.glm4v_9b import processing
from glm4v_magic.core.conversation import Conversation, Message

RANKS = {
    base64.b64decode(token): int(rank)
    for token, rank in (
        line.split() for line in (golden.CHECKPOINT / "tokenizer.model").read_text().splitlines()
    )
}
REFERENCE = tiktoken.Encoding(
    "golden", pat_str=processing.PATTERN, mergeable_ranks=RANKS, special_tokens={}
)
TOKENIZER = processing.load_tokenizer(golden.CHECKPOINT / "tokenizer.model")


@given(st.text() | st.text(alphabet="describe the image\n\r '123'LL", max_size=60))
def test_ids_are_tiktokens(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert ids == REFERENCE.encode(text, disallowed_special=())
    assert TOKENIZER.decode(ids) == text


def test_special_tokens_follow_the_last_rank():
    ids = TOKENIZER.convert_tokens_to_ids(list(processing.SPECIAL_TOKENS))
    assert ids == list(range(300, 314))


@pytest.mark.parametrize("token", processing.SPECIAL_TOKENS)
def test_special_tokens_in_a_message_are_plain_text(token):
    from glm4v_magic.checkpoints import resolve
    from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig

    config = Glm4v9bConfig.from_pretrained(resolve(golden.CHECKPOINT).folder)
    processor = processing.Glm4v9bProcessor(TOKENIZER, config)
    ids = processor.prompt_ids(Conversation((Message("user", f"a{token}b"),)))
    text = ids[4:-1]
    assert all(token_id < 300 for token_id in text)
    assert TOKENIZER.decode(text) == f"a{token}b"
