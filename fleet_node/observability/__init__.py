"""Logging and metrics of the node."""
