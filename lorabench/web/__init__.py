"""A page for adapters: who gets in, what is shown, and the work that is done for it."""
