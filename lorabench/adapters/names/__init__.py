"""What a module is called: wrappers and prefixes, the part of a pipeline, identity, and the families' own names."""
