"""dask_mean.py OUTPUT INPUT...: dask.array over h5py datasets, with its own chunks and threads."""

import json
import sys
import time

import dask.array as da
import h5py

output, *inputs = sys.argv[1:]


def plan(name, item):
    if isinstance(item, h5py.Group):
        copy = result.require_group(name)
    else:
        stack = da.stack([da.from_array(file[name], chunks="auto") for file in files])
        means.append(stack.mean(axis=0))
        copy = result.create_dataset(name, item.shape, item.dtype)
        targets.append(copy)
    copy.attrs.update(item.attrs)


started = time.perf_counter()
files = [h5py.File(path, "r") for path in inputs]
means, targets = [], []
with h5py.File(output, "w") as result:
    files[0].visititems(plan)
    da.store(means, targets)
print(json.dumps({"seconds": time.perf_counter() - started}))
