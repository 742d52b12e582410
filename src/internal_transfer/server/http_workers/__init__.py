"""The processes that speak HTTP for the service."""
