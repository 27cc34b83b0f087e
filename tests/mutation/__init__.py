"""Do the tests test? Mutants of the code that decides, each run against its tests."""
