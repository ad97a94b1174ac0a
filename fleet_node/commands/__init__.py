"""Commands: judged, journaled, run once, reported until acknowledged."""
