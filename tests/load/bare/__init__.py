"""Bare gRPC, SQLite and cryptography: what the machine gives before the product adds anything."""
