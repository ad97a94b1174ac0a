"""Nodes: who is a member, what state it is in, what it is called, what it said of itself, and whether it lives."""
