"""A trained model as a folder, and what it says of adapters that it has not seen."""
