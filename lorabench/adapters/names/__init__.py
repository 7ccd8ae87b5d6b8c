"""What modules are called: their identities, and the names that each family of base models gives them."""
