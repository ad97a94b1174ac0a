"""`fleetctl`: the operators' command line. One file a noun; talks to the Admin service only and imports no room of
the server.

A noun's file imports click and light modules alone; grpc, rich, cryptography and plotext are imported inside the
verbs that need them, so that help and completion answer at once.
"""
