"""Where stock nnU-Net finds this package's trainers.

nnU-Net looks for trainers it does not ship in the folders of the environment variable ``nnUNet_extTrainer``. An
installation puts a one-line ``nnunet_kd.pth`` beside the package (``hatch_build.py`` writes it), which adds the
trainers' folder as the last of them when the interpreter starts. Folders a user has set stay and come first.

To do without: delete ``nnunet_kd.pth`` from site-packages and set ``nnUNet_extTrainer`` yourself to what
``python -m nnunet_kd.discovery`` prints.
"""

import os

VARIABLE = "nnUNet_extTrainer"


def trainers_folder() -> str:
    """The folder nnU-Net has to search, in an installed package or a checkout."""
    package = os.path.dirname(os.path.abspath(__file__))
    installed = os.path.join(package, "trainers")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(package), "trainers")


if __name__ == "__main__":
    print(trainers_folder())
