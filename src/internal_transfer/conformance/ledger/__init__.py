"""What every ledger promises, as tests that run on any adapter."""
