"""The stream to the server: connect, prove, stay, hand over."""
