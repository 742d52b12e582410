"""One module per port and real system."""
