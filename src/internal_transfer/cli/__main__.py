"""Lets a fleet start its processes with `python -m internal_transfer.cli`, the same as `internal-transfer`."""

from internal_transfer.cli import main

main()
