"""Change a live Trainer and read its checkpoints.

Start with `swap.py`, which replaces the small network by the large one.

Imports `networks` and `schedule`.
"""
