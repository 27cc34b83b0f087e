"""Changes to any bytes: bits, numbers, blocks that move, files that end too early."""

from collections.abc import Callable, Sequence
from random import Random

NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1),
    *(2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1),
)
"""Numbers at which counts, sizes and addresses break."""

Edit = Callable[[Random, bytearray, int], None]
"""Changes bytes at a place, or from there."""


def change_bytes(random: Random, content: bytes) -> bytes:
    """One to three changes anywhere."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        edit = random.choice((*SAME_LENGTH, *SAME_LENGTH, *OTHER_LENGTH))
        edit(random, data, random.randrange(len(data) or 1))
    return bytes(data)


def flip(random: Random, data: bytearray, place: int) -> None:
    if place < len(data):
        data[place] ^= 1 << random.randrange(8)


def set_byte(random: Random, data: bytearray, place: int) -> None:
    if place < len(data):
        data[place] = random.choice((0, 1, 127, 128, 254, 255, random.randrange(256)))


def set_number(random: Random, data: bytearray, place: int) -> None:
    """Puts a number of one to eight bytes."""
    size = random.choice((1, 2, 4, 8, 8))
    number = random.choice((*NUMBERS, len(data), random.randrange(len(data) + 1)))
    field = (number % 256**size).to_bytes(size, random.choice(("little", "little", "big")))
    data[place : place + size] = field[: max(0, len(data) - place)]


def nudge(random: Random, data: bytearray, place: int) -> None:
    """Adds a little to a number that may be there."""
    size = random.choice((1, 2, 4, 8))
    if place + size <= len(data):
        number = int.from_bytes(data[place : place + size], "little")
        number += random.choice((-8, -1, 1, 1, 8, 256))
        data[place : place + size] = (number % 256**size).to_bytes(size, "little")


def copy_block(random: Random, data: bytearray, place: int) -> None:
    """Overwrites bytes with others of the file."""
    start = random.randrange(len(data) or 1)
    block = data[start : start + random.choice((4, 8, 16, 64))]
    data[place : place + len(block)] = block[: max(0, len(data) - place)]


def swap_blocks(random: Random, data: bytearray, place: int) -> None:
    size = random.choice((1, 2, 4, 8, 40))
    one, two = sorted((place, random.randrange(len(data) or 1)))
    if one + size <= two and two + size <= len(data):
        left, right = data[one : one + size], data[two : two + size]
        data[one : one + size], data[two : two + size] = right, left


def truncate(random: Random, data: bytearray, place: int) -> None:
    del data[place:]


def remove(random: Random, data: bytearray, place: int) -> None:
    del data[place : place + random.randint(1, 64)]


def insert(random: Random, data: bytearray, place: int) -> None:
    data[place:place] = random.randbytes(random.randint(1, 16))


SAME_LENGTH: Sequence[Edit] = (flip, flip, set_byte, set_number, nudge, copy_block, swap_blocks)
OTHER_LENGTH: Sequence[Edit] = (truncate, remove, insert)
