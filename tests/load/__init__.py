"""Figures, not verdicts: the product's workloads beside bare gRPC of the same shape in the same run.

`python -m tests.load [rows...] [--quick] [--json FILE] [--markdown FILE]`. Each row of the budget table is one module
(`a1_commands.py`, ...); `rows.py` lists them. Servers and clients are processes of their own (`children.py`), on
loopback, and every one is bounded in time and ends with the run.
"""
