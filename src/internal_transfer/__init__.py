"""A self-hostable service for transfers between a user's own accounts."""
