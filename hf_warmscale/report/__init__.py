"""Tables and pictures. Stands at the bottom: it knows no operation."""

from hf_warmscale.report.figures import figure
from hf_warmscale.report.tables import markdown_table, print_table

__all__ = ["figure", "markdown_table", "print_table"]
