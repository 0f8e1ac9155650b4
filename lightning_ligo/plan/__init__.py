"""A small and a large network side by side: what grows into what.

Start with `plan.py`, the result, and `pair.py`, which makes it. `refusals.py` says why a network
cannot be grown from another, `exactness.py` why its growth only approximates the function.

Imports `axes`.
"""
