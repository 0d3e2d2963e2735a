"""How distillation fits nnU-Net's training: the only place that knows its life cycle."""
