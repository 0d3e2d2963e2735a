"""Let stock nnU-Net find this package's trainers.

nnU-Net looks for trainers it does not ship in the folders of the environment variable ``nnUNet_extTrainer``.
``nnunet_kd.pth``, installed beside the package, imports this module when the interpreter starts, and the import
adds the trainers' folder as the last of them. Folders a user has set stay and come first.

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


def announce_trainers() -> None:
    """Append the trainers' folder to ``nnUNet_extTrainer`` of this process and its children."""
    folders = [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    if trainers_folder() not in folders:
        os.environ[VARIABLE] = os.pathsep.join([*folders, trainers_folder()])


announce_trainers()

if __name__ == "__main__":
    print(trainers_folder())
