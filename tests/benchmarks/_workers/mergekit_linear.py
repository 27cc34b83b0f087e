"""mergekit_linear.py OUTPUT INPUT...: mergekit's own program for plain files, method `linear`."""

import contextlib
import json
import sys
import time
from pathlib import Path

from mergekit.scripts.merge_raw_pytorch import main

output, *inputs = sys.argv[1:]
config = {
    "merge_method": "linear",
    "models": [{"model": path, "parameters": {"weight": 1.0}} for path in inputs],
    "parameters": {"normalize": True},
    "dtype": "float32",
}

started = time.perf_counter()
Path(output).mkdir()
file = Path(output) / "config.yml"
file.write_text(json.dumps(config))  # all JSON is YAML
with contextlib.redirect_stdout(sys.stderr):
    main.main([str(file), output, "--quiet"], standalone_mode=False)
print(json.dumps({"seconds": time.perf_counter() - started}))
