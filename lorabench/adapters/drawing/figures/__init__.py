"""A kind of picture a file (see `drawing.kinds`)."""
