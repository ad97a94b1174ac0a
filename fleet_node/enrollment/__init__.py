"""How a node becomes a member: join token, keys, fingerprint, the operator's decision, and the membership on disk."""
