"""How far adapters are from one another."""
