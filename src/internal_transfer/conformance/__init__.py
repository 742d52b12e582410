"""The conformance kit: shows whether a trading core, a ledger or a transfer store keeps the promises of its port."""
