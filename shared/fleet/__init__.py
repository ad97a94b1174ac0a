"""What both ends of the gateway must agree on, and nothing else."""
