"""safetensors_loop.py OUTPUT INPUT...: tensor by tensor through safetensors, summed in float64."""

import json
import sys
import time

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

output, *inputs = sys.argv[1:]

started = time.perf_counter()
files = [safe_open(path, "np") for path in inputs]
means = {}
for name in files[0].keys():  # noqa: SIM118 - it is no dict
    total = np.zeros(files[0].get_slice(name).get_shape())
    for file in files:
        total += file.get_tensor(name)
    total /= len(files)
    means[name] = total.astype(np.float32)
save_file(means, output)
print(json.dumps({"seconds": time.perf_counter() - started}))
