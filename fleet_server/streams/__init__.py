"""Live streams of nodes: one per node by epoch, its lanes, its liveness, and its orderly end."""
