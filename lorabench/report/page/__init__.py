"""The page of a report: `report.html`, one file that opens from disk and asks for nothing."""

from lorabench.report.page.page import page_html, write_page

__all__ = ["page_html", "write_page"]
