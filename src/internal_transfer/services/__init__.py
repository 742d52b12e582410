"""The roles of the service, each built on its ports, and what they share; nothing here is global."""
