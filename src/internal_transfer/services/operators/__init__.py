"""What operators do: the desk for stuck transfers, evidence, policy, cash, API keys, the audit chain."""
