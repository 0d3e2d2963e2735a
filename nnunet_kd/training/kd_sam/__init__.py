"""KD-SAM's training in two phases."""
