"""Faults, failpoints, power loss, a clock that tests own, and the scenarios of the demo."""
