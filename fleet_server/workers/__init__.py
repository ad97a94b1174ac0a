"""`fleet-server run --workers N`: N replicas on one machine, and the small process that starts and ends them."""
