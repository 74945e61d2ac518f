"""Several copies of a model on the machines of a Ray cluster, which share the requests.

Ray is imported by `cluster` and `engine`, which are imported only if replicas are asked for.

- `layout`: how many replicas go where; plain data;
- `cluster`: connects to a cluster, or starts one on this machine, and finds out what it has;
- `worker`: a replica, in a process of its own: an engine that is called remotely;
- `engine`: `ReplicasEngine` spreads requests over the replicas.
"""
