"""GrowthCallback and its parts.

Start with `growth.py`, the callback, and `grower.py`, one growth.

Imports all folders but `cli` and `compare`.
"""
