"""Pictures of one adapter, or of two: each file draws one kind, `pictures` writes them."""
