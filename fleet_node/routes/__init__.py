"""Routes on a node: probes between nodes, what they showed, and the paths that follow from it."""
