"""Networks as plain data: describe, change and build them, by short name, with their weights."""
