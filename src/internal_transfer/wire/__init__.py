"""What leaves the process on a wire: messages that adapters of several systems share, in versioned JSON."""
