"""The suite needs pyaeron; where this interpreter has none, `test_suite.py` runs it with one that has."""

import sys
from importlib.util import find_spec
from pathlib import Path

# The package `servers` lies beside `tests` in a checkout, and is not installed.
sys.path.append(str(Path(__file__).resolve().parents[3]))

collect_ignore = [] if find_spec("pyaeron") else ["suite"]
