"""Another rank."""
