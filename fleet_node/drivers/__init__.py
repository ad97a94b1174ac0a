"""What a node can do: drivers, each a named set of actions with a JSON Schema, and the registry that loads
them.

`api` is what a driver author writes against, `registry` is what the node's other rooms call, `contract` is
the test suite that every driver passes. docs/drivers.md tells how to write one.
"""
