"""What the node is doing: the daemon's control socket, and the answer to `fleet-node status`."""
