"""Many averages, each evaluated in one live model: sweeps, soups, and what they share."""
