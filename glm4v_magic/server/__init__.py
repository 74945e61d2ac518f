"""An OpenAI-compatible server for one model: ``python -m glm4v_magic.server MODEL``.

From the outside in:

- ``__main__``: the start, which an interrupt may stop;
- `command`: the command line;
- `listening`: the socket, and uvicorn, which speaks HTTP on it;
- `deadlines`: connections of clients that are too slow are cut;
- `app`: the routes, who may ask, and what an error looks like;
- `protocol`: requests and replies as pydantic models, with the table of all fields;
- `openapi`: the OpenAPI document of all that;
- `metrics`: counts and times for Prometheus;
- `questions`: requests of the protocol -> requests for a session;
- `worker`: the session in a thread of its own, which answers all requests in one running batch.
"""
