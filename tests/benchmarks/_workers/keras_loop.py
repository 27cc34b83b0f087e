"""keras_loop.py MODEL OUTPUT INPUT...: what a Keras user writes first."""

import json
import sys
import time

from model import build

spec, output, *inputs = sys.argv[1:]
model = build(**json.loads(spec))

started = time.perf_counter()
total = None
for path in inputs:
    model.load_weights(path)
    weights = model.get_weights()
    total = weights if total is None else [a + b for a, b in zip(total, weights, strict=True)]
model.set_weights([a / len(inputs) for a in total])
model.save_weights(output)
print(json.dumps({"seconds": time.perf_counter() - started}))
