"""A hospital's side of a run: its stages, its data loading, its personal state, and prediction."""
