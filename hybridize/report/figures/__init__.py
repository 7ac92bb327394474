"""Figures as pure functions from the rows of a table to SVG text, at a width in pixels."""
