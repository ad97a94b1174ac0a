"""The MAC is HMAC-SHA256, whatever key and message."""

import hmac

from hypothesis import given
from hypothesis import strategies as st

from fleet.mac import HmacSha256


@given(key=st.binary(max_size=200), parts=st.lists(st.binary(max_size=300), max_size=4))
def test_values_are_those_of_the_standard_library(key: bytes, parts: list[bytes]) -> None:
    mac = HmacSha256(key)
    expected = hmac.digest(key, b"".join(parts), "sha256")
    assert mac.digest(*parts) == expected
    assert mac.digest(*parts) == expected  # the key's own hashes were not changed by the first
