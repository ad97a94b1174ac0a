"""The cluster's keys: authority, command keys, trust bundles, and the secrets under which the server seals and marks
its rows."""
