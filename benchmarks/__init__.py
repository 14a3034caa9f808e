"""What we claim about speed and about scores, as scripts that print the tables."""
