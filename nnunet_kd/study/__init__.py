"""Studies of several trainings: which there are, how they run, how they compare."""
