"""`python -m internal_transfer` is `internal-transfer`."""

from internal_transfer.cli import main

main()
