"""The effect of each tensor operation on the factors of its dimensions: one rule per operation."""
