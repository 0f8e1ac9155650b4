"""Maps and mixes of a plan: grow, learn, price.

Start with `operator.py`, which grows parameters, and `grow.py`, the whole way in one function.

Imports `axes`, `methods` and `plan`.
"""
