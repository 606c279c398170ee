"""What checks find and what they cost, one module a question."""
