"""Looking at runs and averages."""
