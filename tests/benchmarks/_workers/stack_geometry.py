"""stack_geometry.py INPUT...: distances of checkpoints whose weights are stacked in memory."""

import json
import sys
import time

import h5py
import numpy as np


def collect(name, item):
    if isinstance(item, h5py.Dataset) and not is_statistic(name):
        row.append(item[...].ravel())


def is_statistic(name):
    layer, _, variable = name.rpartition("/vars/")
    return layer.rpartition("/")[2].startswith("batch_normalization") and variable in "23"


started = time.perf_counter()
rows = []
for path in sys.argv[1:]:
    row = []
    with h5py.File(path) as file:
        file.visititems(collect)
    rows.append(np.concatenate(row))
deviations = np.stack(rows).astype(np.float64)
deviations -= deviations.mean(axis=0)
gram = deviations @ deviations.T
squares = np.diag(gram)
distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * gram, 0.0))
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "distances": distances.tolist()}))
