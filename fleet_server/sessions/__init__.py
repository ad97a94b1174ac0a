"""Sessions: api_keys, the handshake that turns one into a session token, the claim that turns a token into a stream,
and admission.
"""
