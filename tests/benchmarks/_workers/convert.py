"""convert.py SUFFIX FOLDER INPUT...: the same tensors under the same names for other programs."""

import sys
from pathlib import Path

import h5py

suffix, folder, *inputs = sys.argv[1:]


def keep(name, item):
    if isinstance(item, h5py.Dataset):
        tensors[name] = item[...]


for path in map(Path, inputs):
    tensors = {}
    with h5py.File(path) as file:
        file.visititems(keep)
    target = Path(folder) / path.name.replace(".weights.h5", suffix)
    if suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, target)
    else:
        import torch

        torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, target)
