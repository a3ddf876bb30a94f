"""The report of a grid: table, findings, figures and files.

Takes an `Analysis`; writes `report.html`, `report.md`, `table.tex`, tables and figures.
"""
