"""versions.py PACKAGE...: the versions of those that this interpreter can import."""

import json
import sys
from importlib import metadata, util

print(json.dumps({name: metadata.version(name) for name in sys.argv[1:] if util.find_spec(name)}))
