"""Logging, metrics and health of the server."""
