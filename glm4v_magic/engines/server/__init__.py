"""A model on a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp or our own.

Nothing here imports torch. From the outside in:

- `engine`: `connect` finds out what is served, `ServerEngine` asks it;
- `flight`: many requests at once, in an event loop of their own (`background`);
- `dialogue`: one request, again without what a server does not take, or while it is busy
  (`patience`);
- `question`: a request in OpenAI's terms;
- `transcript`: the pieces of an answer, as events and as one text; `logprobs` places
  tokens in it, and `carried_on` tells whether it goes on where it should;
- `connection`: HTTP, server-sent events, and everything that can fail there, in words;
- `replies`: what servers send, as pydantic models.
"""

from glm4v_magic.engines.server.engine import ServerEngine, connect
from glm4v_magic.engines.server.replies import OwnAnswer, OwnFacts

__all__ = ["OwnAnswer", "OwnFacts", "ServerEngine", "connect"]
