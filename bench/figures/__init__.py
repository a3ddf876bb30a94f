"""Figures: functions that take an `Analysis` and return a matplotlib `Figure`.

`catalogue` lists the figures of a grid and draws them; `style` is shared by all figures.
"""
