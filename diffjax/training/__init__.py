"""Training: knows no system and no paper, takes an objective."""
