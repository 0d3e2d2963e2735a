"""All code that reads nnU-Net's files: plans, data sets, checkpoints and preprocessed cases."""
