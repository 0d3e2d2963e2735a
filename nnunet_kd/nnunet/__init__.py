"""Everything that knows nnU-Net's files: plans, data sets, checkpoints, preprocessed cases, and what may be opened."""
