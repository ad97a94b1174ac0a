"""Generated from proto/fleet/v1. Never edited: `make proto` writes it."""
