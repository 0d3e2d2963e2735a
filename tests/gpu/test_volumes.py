"""Memory and time of training steps on volumes of 128 x 128 x 128 voxels, beside stock nnU-Net's."""

import pytest
import torch
import train_step
from timing import medians

from tests.gpu.compiling import nnunet_compiles
from tests.gpu.memory import peak_bytes
from tests.gpu.training import mixed_precision

METHODS = ("LogitsKD", "FitNets", "CWD", "IFVD", "DCD", "FreeKD", "FreeKD tuning", "SoftKD", "DualSelfKD")
METHODS += ("RKD", "CIRKD", "SKD")
WITH_MANY_LABELS = ("LogitsKD", "CWD", "IFVD")
MANY = {"background": 0, **{f"structure {label}": label for label in range(1, 40)}}
MOST_MEMORY, MOST_TIME = 1.5, 1.3


class Volumes:
    """An experiment with volumes of one size, and a teacher of random weights."""

    def __init__(self, place, labels):
        self.place, self.labels = place, labels
        self.patch, self.batch = place.size([128] * 3, [32, 16, 16]), place.size(2, 1)
        self.step = train_step.random_batch(self.patch, self.batch)
        self.step["data"] = self.step["data"].to(place.device)
        self.step["target"] = [scale.to(place.device) for scale in self.step["target"]]

    def trainer(self, method, reduction=None):
        """A trainer whose epoch is past ramps and tuning, or one that tunes; the empty name is stock's."""
        made = train_step.trainer(method.split(" ")[0], self.patch, self.batch, reduction, self.place.device.type)
        made.current_epoch = 0 if "tuning" in method else made.num_epochs - 1
        return made

    def batch_of(self, method):
        """The batch, with soft labels beside the images if the method reads them."""
        if method != "SoftKD":
            return self.step
        images = self.step["data"]
        soft = images.new_zeros(self.batch, len(self.labels), *self.patch)
        stored = [images, soft, images.new_ones(self.batch, 1, *self.patch)]
        return {**self.step, "data": torch.cat(stored, 1)}

    def peak(self, method):
        """The peak of a trainer with all it holds and two steps, in GiB."""
        batch = self.batch_of(method)

        def train():
            trainer = self.trainer(method)
            for _ in range(2):
                trainer.train_step(batch)

        return peak_bytes(self.place, train) / 2**30

    def seconds(self, method):
        """The median times of a step, of the same student's without a method, and of what its teacher has to do."""
        trainer, batch = self.trainer(method), self.batch_of(method)
        alone = self.trainer("NoKD", 1 if method == "DualSelfKD" else None)
        sides = {"alone": lambda: alone.train_step(self.step), "step": lambda: trainer.train_step(batch)}
        teacher = trainer.distiller.teacher
        logits = any(term.reads_logits for term in trainer.preparation.terms) or "tuning" in method
        if teacher is not None:
            sides["teacher"] = lambda: self._ask(teacher, logits)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.backends.cudnn, "benchmark", True)  # as nnUNetv2_train has it
            waiting = {name: self._waiting(run) for name, run in sides.items()}
            return medians(waiting, self.place.size(5, 1), warm_up=self.place.size(3, 1))

    def _ask(self, teacher, logits):
        with self.place.autocast():
            teacher(self.step["data"], logits)

    def _waiting(self, run):
        def run_to_the_end():
            run()
            self.place.wait()

        return run_to_the_end


@pytest.fixture(scope="module", autouse=True)
def mixed(place):
    with mixed_precision(place):
        yield


@pytest.fixture(scope="module", params=[4, 40], ids=["4 labels", "40 labels"])
def volumes(request, place):
    """An experiment with few labels or many."""
    labels = train_step.DATASET_JSON["labels"] if request.param == 4 else MANY
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(variable, "")  # to have its value restored, which the experiment changes
        patch.setitem(train_step.DATASET_JSON, "labels", labels)
        made = Volumes(place, labels)
        with train_step.scratch_experiment(made.patch, made.batch):
            if request.param == 4:
                train_step.store_soft_labels(made.patch)
            yield made


@pytest.fixture(scope="module")
def peak_of_stock(volumes):
    """The peak of a training step of nnU-Net's own trainer at full width, in GiB."""
    return volumes.peak("")


@pytest.mark.parametrize("method", METHODS)
def test_memory(place, figures, volumes, peak_of_stock, method):
    """No method needs more than one and a half times stock's memory."""
    if len(volumes.labels) == len(MANY) and method not in WITH_MANY_LABELS:
        pytest.skip("does not depend on the number of labels")
    figures["stock GiB"] = peak_of_stock
    figures["peak GiB"] = volumes.peak(method)
    figures["ratio"] = figures["peak GiB"] / peak_of_stock
    assert figures["ratio"] > 0
    assert place.fake or figures["ratio"] <= MOST_MEMORY


@pytest.mark.parametrize("method", METHODS)
def test_time(place, figures, volumes, method):
    """A step takes little longer than the student's own and its teacher's forward pass.

    FreeKD's tuning, which also goes back through the teacher's decoder, is timed but not bounded.
    """
    if len(volumes.labels) == len(MANY):
        pytest.skip("is timed with few labels")
    _compare(place, figures, volumes, method)


def test_time_of_compiled_networks(place, figures, volumes):
    """The same, compiled as nnU-Net compiles by default."""
    if len(volumes.labels) == len(MANY):
        pytest.skip("is timed with few labels")
    with nnunet_compiles(place):
        _compare(place, figures, volumes, "DCD")


def _compare(place, figures, volumes, method):
    seconds = volumes.seconds(method)
    figures.update({f"{name} ms": 1e3 * value for name, value in seconds.items()})
    figures["ratio"] = seconds["step"] / (seconds["alone"] + seconds.get("teacher", 0))
    assert figures["ratio"] > 0
    assert place.fake or "tuning" in method or figures["ratio"] <= MOST_TIME
