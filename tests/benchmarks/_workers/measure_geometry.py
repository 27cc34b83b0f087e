"""measure_geometry.py INPUT...: distances of checkpoints, streamed."""

import json
import sys
import time

from ckptavg.analysis.geometry.measure import measure_geometry

started = time.perf_counter()
geometry = measure_geometry(sys.argv[1:])
distances = geometry.distances().values
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "distances": distances.tolist()}))
