"""Commands, from an operator's request to a recorded result: once, or known to be unknown."""
