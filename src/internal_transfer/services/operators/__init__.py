"""What operators do: desk, evidence, policy, cash, keys, audit."""
