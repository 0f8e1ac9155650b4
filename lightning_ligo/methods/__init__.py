"""Every published way to grow, as data.

Start with `method.py`, what a method is, and `catalog.py`, all of them. `maps.py` says how widths
start, `mixes.py` how depths do.

Imports nothing else of this package.
"""
