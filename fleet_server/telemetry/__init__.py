"""Telemetry: taken in as packed columns, stored as compressed chunks, read as latest values and history."""
