"""Telemetry: collected, spooled, sent as columns, kept until acknowledged."""
