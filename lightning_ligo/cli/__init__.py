"""The command line: `fit`, `plan`, `grow`, `methods`.

Imports all folders but `compare`.
"""
