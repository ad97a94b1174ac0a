"""A node's identity and memory in one file: made while it runs, opened with a passphrase."""
