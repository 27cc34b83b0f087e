"""An average beside what it was made of: which is better, and why."""
