"""Measure the quality and the cost of models."""
