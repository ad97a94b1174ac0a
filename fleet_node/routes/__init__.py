"""The node's routes room: which paths it probes, answers and relays, and what it says of them."""
