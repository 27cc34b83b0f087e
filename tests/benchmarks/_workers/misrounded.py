"""misrounded.py RESULT INPUT...: the share of elements that are not the correctly rounded mean.

The sum of a few float32 numbers in float64 is all but always exact, so that one rounding of the
float64 mean gives the right float32. Every seventh tensor is looked at, which meets all six kinds
of a Dense and BatchNormalization pair.
"""

import json
import sys
from pathlib import Path

import h5py
import numpy as np


def open_result(path):
    """A function from names to arrays."""
    if path.is_dir():
        path = next(path.glob("*.safetensors"))
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        return safe_open(path, "np").get_tensor
    if path.suffix == ".pt":
        import torch

        tensors = torch.load(path)
        return lambda name: tensors[name].numpy()
    file = h5py.File(path)
    return lambda name: file[name][...]


def names_of(file):
    found = []

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found.append(name)

    file.visititems(keep)
    return found


result = open_result(Path(sys.argv[1]))
files = [h5py.File(path) for path in sys.argv[2:]]
wrong = total = 0
for name in names_of(files[0])[::7]:
    mean = sum(file[name][...].astype(np.float64) for file in files) / len(files)
    wrong += int(np.count_nonzero(result(name) != mean.astype(np.float32)))
    total += mean.size
print(json.dumps({"misrounded": wrong / total}))
