"""Looking for a better average: sweeps, soups, and a look before merging."""
