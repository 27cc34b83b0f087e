"""torch_running_mean.py OUTPUT INPUT...: state dicts through AveragedModel's running mean."""

import json
import sys
import time

import torch
from torch.optim.swa_utils import get_swa_avg_fn

output, first, *others = sys.argv[1:]

started = time.perf_counter()
update = get_swa_avg_fn()
mean = torch.load(first)
for count, path in enumerate(others, 1):
    for name, tensor in torch.load(path).items():
        mean[name].copy_(update(mean[name], tensor, count))
torch.save(mean, output)
print(json.dumps({"seconds": time.perf_counter() - started}))
