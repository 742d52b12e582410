"""Real servers for tests and local trials, from package registries, on loopback. Not shipped with the product."""
