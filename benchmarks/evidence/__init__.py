"""Apriel-H1's claims, tested again on the shipped teacher: arms, runs, verdicts, page."""
