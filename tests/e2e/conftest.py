"""`ccxt_suite` needs ccxt, which this environment has not; `test_ccxt.py` runs it with one that has."""

collect_ignore = ["ccxt_suite"]
