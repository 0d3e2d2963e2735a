"""``nnunet_kd distill``: from a trained model and a folder of images to a small student, command by command."""
