"""Distillation inside nnU-Net's training; no other part of the package knows its life cycle."""
