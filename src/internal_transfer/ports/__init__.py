"""What the service needs from the systems around it: one protocol per system, and what belongs to its contract."""
