"""Figures: a frame in, a matplotlib `Figure` out.

`catalogue` names all figures of a grid and draws them; `style` is what they share.
"""
