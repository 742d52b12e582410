"""`clients_suite` needs packages that this environment does not have; `test_clients.py` runs it in one that does."""

collect_ignore = ["clients_suite"]
