"""The comparison of methods with training from scratch, at equal FLOPs.

Start with `command.py`, the command, and `comparison.py`, what it runs.

Imports all folders.
"""
