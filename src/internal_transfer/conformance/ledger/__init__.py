"""What every ledger promises, as tests that run on any adapter; see docs/guides/own-adapter.md."""

from internal_transfer.conformance.suites import explain_failures

explain_failures(__name__, __path__)
