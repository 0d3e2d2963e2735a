"""The checks that need a GPU, one per test: ``make gpu`` runs them, ``make gpu-fake`` executes them without one."""
