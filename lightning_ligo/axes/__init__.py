"""Which dimensions of which parameters are one axis.

Start with `axes.py`, the result, and `trace.py`, which finds it by watching one forward.

Imports nothing else of this package.
"""
