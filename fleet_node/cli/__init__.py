"""The verbs of `fleet-node`, one file each."""
