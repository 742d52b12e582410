"""What every transfer store promises, as tests that run on any adapter."""
