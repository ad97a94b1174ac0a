"""The cloud side of the gateway: replicas that hold the streams of on-premises nodes."""
