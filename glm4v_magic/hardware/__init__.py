"""The machine as it is: GPUs and their links, driver, processes, memory in use.

Imports `core`; pynvml, psutil and an already imported torch are asked where they exist. Nothing
here creates a CUDA context. Begin with `gpus.find_gpus` (the GPUs of this process) and
`readings.take_readings` (how full each memory is now). `usable` gives those that a model may be put
on, before it is loaded; where the driver lists some, it imports torch to count what torch can use.
"""
