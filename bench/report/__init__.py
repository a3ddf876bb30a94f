"""The report of a grid: table, findings, figures and files.

Takes `Results`; writes `report.html`, `report.md`, `table.tex`, the tables and figures.
"""
