"""The operators' gRPC service: who may call what, and one thin file per room behind it."""
