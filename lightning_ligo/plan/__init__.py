"""A small and a large network side by side: what grows into what.

Start with `plan.py`, the result, and `pair.py`, which makes it of the `correspondence.py` of two
networks. `refusals.py` says why one cannot be grown from the other, `exactness.py` why the growth
only approximates the function.

Imports `axes`.
"""
