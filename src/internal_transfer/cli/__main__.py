"""`python -m internal_transfer.cli`, with which a fleet starts its processes, is `internal-transfer`."""

from internal_transfer.cli import main

main()
