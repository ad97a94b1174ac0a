"""Enrollment: join tokens, the requests that nodes make with them, the operator's decision, and the bootstrap that
makes a member.
"""
