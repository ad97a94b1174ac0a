"""Why a node does not connect: every step of the way looked at on its own, with what to do about it."""
