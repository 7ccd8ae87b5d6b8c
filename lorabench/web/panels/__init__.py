"""The panels, one file each; a panel computes nothing: it asks the same functions and commands as a terminal does."""
