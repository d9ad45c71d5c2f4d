"""Files that are damaged at random, by a seed, for every reader: each ends in a documented error, in time and memory.

`python -m tests.fuzz --minutes 30` is the long run; `python -m tests.fuzz --reader NAME --case N` does one again.
"""
