"""Changes to safetensors files: to the header, whose length is made to fit, or to any bytes."""

from random import Random

from tests.fuzzing.mutations.json_trees import change as change_json
from tests.fuzzing.mutations.plain import change_bytes


def change(random: Random, content: bytes) -> bytes:
    """Another header, aligned as the format asks for or not."""
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = change_json(random, content[8:end]), content[end:]
    if random.random() < 0.8:
        header += b" " * (-len(header) % 8)
    if random.random() < 0.1:
        data = random.choice((data[:-1], data + b"\0", change_bytes(random, data)))
    length = len(header) + (random.random() < 0.05) * random.choice((-1, 1, 2**40))
    return length.to_bytes(8, "little") + header + data
