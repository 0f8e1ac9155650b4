"""Maps and mixes of a plan: grow, learn, price.

Start with `grow.py`, the whole way in one function, and `operator.py`, which grows parameters.

Imports `axes`, `methods` and `plan`.
"""
