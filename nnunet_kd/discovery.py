"""The folder in which stock nnU-Net finds this package's trainers.

nnU-Net looks for external trainers in the folders that the environment variable ``nnUNet_extTrainer`` lists. The
installation puts a one-line file, ``nnunet_kd.pth``, beside the package (``hatch_build.py`` writes it). When the
interpreter starts, this file appends the trainers' folder to the list. Folders that the user has set are kept and are
searched first.

To opt out, delete ``nnunet_kd.pth`` from site-packages and set ``nnUNet_extTrainer`` to the folder that
``python -m nnunet_kd.discovery`` prints.
"""

import os

VARIABLE = "nnUNet_extTrainer"


def trainers_folder() -> str:
    """Return the folder that nnU-Net must search, in an installed package or in a checkout."""
    package = os.path.dirname(os.path.abspath(__file__))
    installed = os.path.join(package, "trainers")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(package), "trainers")


if __name__ == "__main__":
    print(trainers_folder())
