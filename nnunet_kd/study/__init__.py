"""Studies that train several methods, run them with nnU-Net's commands, and compare their results."""
