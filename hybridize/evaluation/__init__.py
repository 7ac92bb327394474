"""Answer problems by generation and score the answers; shared by importance and evaluation."""
