"""Opens the adapters that the settings name and builds the roles on them: the only room that knows both."""
