"""The conformance kit: shows whether a trading core keeps its promises, by telling it orders and looking."""
