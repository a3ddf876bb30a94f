"""Specs such as `maf[hidden=32]`: registries of builders, and typed option values.

Takes text; returns builders with resolved options, or an error that names the nearest known one.
"""
