"""A smaller network from a larger one: which channels stay, and weights that give what the larger network gives."""
