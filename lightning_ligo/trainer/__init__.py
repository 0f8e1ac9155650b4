"""What a live Trainer and its checkpoint need.

Start with `swap.py`, which puts a large network where a small one was.

Imports `networks` and `schedule`.
"""
