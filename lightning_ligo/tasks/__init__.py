"""Modules and data of the recipes, to use or to start from.

Imports `networks`.
"""
