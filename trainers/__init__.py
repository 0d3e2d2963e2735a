"""nnU-Net trainers, one a file, file name = class name. nnU-Net imports the files by themselves, not this package."""
