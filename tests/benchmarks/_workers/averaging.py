"""Merges, and prints the processor seconds of the averaging alone. Arguments: run, output."""

import json
import sys
import time

import ckptavg

plan = ckptavg.plan_merge(sys.argv[1], sys.argv[2])
started = time.process_time()
ckptavg.run_plan(plan)
print(json.dumps({"seconds": time.process_time() - started}))
