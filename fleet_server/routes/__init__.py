"""Routes: which path each takes, why, and until when it may."""
