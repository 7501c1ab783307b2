"""Predictions beside what runs used: the record, its store, and what follows for the next prediction."""
