"""Replicas: which server processes share the load, which of them live, and which are asked to drain."""
