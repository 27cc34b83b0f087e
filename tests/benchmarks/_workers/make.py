"""make.py MODEL COUNT FOLDER: Keras writes checkpoints of random weights, with records."""

import json
import sys
from pathlib import Path

import numpy as np
from model import build

from ckptavg.runs.proof import tensor_records
from ckptavg.runs.record import Record, now, versions

model = build(**json.loads(sys.argv[1]))
folder = Path(sys.argv[3])
rng = np.random.default_rng(0)
for epoch in range(1, int(sys.argv[2]) + 1):
    for variable in model.weights:
        values = rng.standard_normal(variable.shape, dtype="float32")
        values *= np.float32(0.05)
        if "variance" in variable.path:
            values = np.abs(values) + np.float32(0.5)
        variable.assign(values)
    path = folder / f"epoch-{epoch:04d}.weights.h5"
    model.save_weights(path)
    record = Record(path.name, path.stat().st_size, now(), versions(), epoch=epoch)
    record.write(path.with_name(f"epoch-{epoch:04d}.json"), tensor_records(path))
