"""`python -m internal_transfer.cli` is `internal-transfer`."""

from internal_transfer.cli import main

main()
