"""The on-premises side of the gateway: one daemon per node."""
