"""Pages that are one file: no request leaves them, tables sort and filter, figures are SVG in the page's colours."""
