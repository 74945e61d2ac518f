"""Several copies of a model on the machines of a Ray cluster, which share the requests.

Ray is imported by `cluster`, `replica`, `call` and `engine`, and only if replicas are asked for.

- `layout`: how many replicas go where; plain data;
- `cluster`: connects to a cluster, or starts one on this machine, and finds out what it has;
- `worker`: a replica, in a process of its own: an engine that is called remotely;
- `replica`: a replica, as seen from here; `starting` starts several;
- `group`: those that are alive, and the chats that they know;
- `call`: spreads the requests of a call over them, and asks again what a lost one was asked;
- `engine`: `ReplicasEngine`, all of it as one engine.
"""
