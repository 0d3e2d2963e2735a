"""The method side of a training step: terms, the networks' parts they read, and the numbers they are given."""
