"""The web page: the toolkit for those who never type."""
