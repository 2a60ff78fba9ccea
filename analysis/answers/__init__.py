"""What a study says: the final values of its arms, their contrasts, which are the best, and what is missing."""
