"""Joined checksums, held against google_crc32c on the joined bytes."""

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from ckptavg.formats.crc32c import crc32c_combine


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_joined_checksum_is_that_of_the_joined_bytes(a, b):
    joined = crc32c_combine(google_crc32c.value(a), google_crc32c.value(b), len(b))
    assert joined == google_crc32c.value(a + b)


def test_long_parts_and_many_of_them():
    zeros = bytes(3_000_001)
    crc = 0
    for length in (8 * 1024 * 1024, 1, 0, 3_000_001):
        part = zeros * 3
        crc = crc32c_combine(crc, google_crc32c.value(part[:length]), length)
    assert crc == google_crc32c.value(bytes(8 * 1024 * 1024 + 1 + 3_000_001))


def test_the_check_value_of_crc_32c():
    # "123456789" gives 0xE3069283: the catalogue of parametrised CRC algorithms, CRC-32/ISCSI.
    halves = [google_crc32c.value(part) for part in (b"1234", b"56789")]
    assert crc32c_combine(*halves, 5) == 0xE3069283
