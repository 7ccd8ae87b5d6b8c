"""What a person sees of a result: tables and pictures."""

from lorabench.report.figures import write_figures
from lorabench.report.tables import print_table, table_text

__all__ = ["print_table", "table_text", "write_figures"]
