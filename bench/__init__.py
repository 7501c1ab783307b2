"""The GPU bench: real training steps of catalogue shapes on one card, beside what the planner predicts for them."""
