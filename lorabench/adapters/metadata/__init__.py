"""What a file says beside its weights: read, checked, edited, and gathered over a library."""
