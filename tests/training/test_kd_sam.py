"""KD-SAM's two phases through nnU-Net's life cycle, with a tiny SAM of the published architecture."""

import math
import shutil

import numpy as np
import pytest
import torch
import torchvision

from nnunet_kd.cli import main
from nnunet_kd.teachers.sam import load_sam
from nnunet_kd.teachers.sam_embeddings import Colours, EmbeddingStore, SamEmbedder, SlicePatches
from nnunet_kd.trainers.nnUNetTrainerKDSAM import nnUNetTrainerKDSAM
from tests.commands import SIZE_OF_TINY_SAM
from tests.conftest import make_trainer, stop_within
from tests.training import variants
from tests.training.small_kd_sam import SCHEDULE, plans_for

PARTS = ("embedding_mse", "embedding_perceptual", "validation_embedding_mse", "segmentation")


def trainer_for(workspace, plans, **options):
    return make_trainer(nnUNetTrainerKDSAM, plans, workspace, configuration="2d", **options)


def folder_of(workspace):
    return workspace.results / "nnUNetTrainerKDSAM__nnUNetPlans_kd_sam__2d" / "fold_0"


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def store_embeddings(workspace, sam, *words):
    given = ("soft-labels", "-d", workspace.dataset, "-c", "2d", "-p", "nnUNetPlans_kd_sam", "--embeddings")
    return main([*given, "--sam", "tiny", "--checkpoint", str(sam), "-device", "cpu", *words])


@pytest.mark.slow
@pytest.mark.parametrize("stored", [False, True])
def test_each_phase_trains_only_its_half(workspace, sam, stored):
    plans = plans_for(workspace, sam, **({"embeddings": "sam"} if stored else {}))
    if stored:
        assert store_embeddings(workspace, sam) == 0
    trainer = trainer_for(workspace, plans)
    trainer.initialize()
    parts = {"encoder": trainer.kd_sam.encoder, "decoder": trainer.kd_sam.decoder}
    history = [{name: weights_of(part) for name, part in parts.items()}]
    ended = trainer.on_epoch_end

    def remember():
        history.append({name: weights_of(part) for name, part in parts.items()})
        ended()

    trainer.on_epoch_end = remember
    trainer.run_training()
    before, _, end_of_first, _, end = history
    assert not same(before["encoder"], end_of_first["encoder"]) and same(before["decoder"], end_of_first["decoder"])
    # Weights, biases and the statistics of batch normalisation.
    assert same(end_of_first["encoder"], end["encoder"]) and not same(end_of_first["decoder"], end["decoder"])

    saved = torch.load(folder_of(workspace) / "checkpoint_final.pth", weights_only=False)
    logged = saved["logging"]
    for name in PARTS[:3]:
        assert np.isfinite(logged[name][:2]).all() and np.isnan(logged[name][2:]).all(), name
    assert np.isnan(logged["segmentation"][:2]).all() and np.isfinite(logged["segmentation"][2:]).all()
    expected = np.add(logged["embedding_mse"], logged["embedding_perceptual"])[:2]
    np.testing.assert_allclose(logged["train_losses"][:2], expected, rtol=1e-5)
    assert logged["lrs"] == [1e-4] * 4
    assert same(saved["network_weights"], weights_of(trainer.kd_sam))
    assert saved["nnunet_kd"]["encoder_progress"]["best_weights"] is None
    text = next(folder_of(workspace).glob("training_log*")).read_text()
    assert "phase 1, at most 2 epochs, embeddings of tiny " + ("stored as 'sam'" if stored else "computed on") in text
    assert "validation_embedding_mse" in text and "phase 2, encoder frozen" in text


def test_every_patch_comes_with_its_own_embedding(workspace, sam):
    plans = plans_for(workspace, sam, embeddings="sam")
    assert store_embeddings(workspace, sam) == 0
    trainer = trainer_for(workspace, plans)
    trainer.initialize()
    colours = Colours.of(trainer.configuration_manager.normalization_schemes, None)
    embedder = SamEmbedder(load_sam("tiny", sam), colours, torch.device("cpu"))
    pairs = []
    for loader in trainer.get_dataloaders():
        for _ in range(4):
            batch = next(loader)
            pairs += zip(embedder(batch["data"]), batch["embedding"].float(), strict=True)
    apart = [[(ours - theirs).abs().mean().item() for _, theirs in pairs] for ours, _ in pairs]
    assert max(apart[i][i] for i in range(len(pairs))) < 1e-3
    assert np.median(apart) > 1e-2


def test_the_losses_of_both_phases_follow_the_settings(workspace, sam):
    plans = plans_for(workspace, sam, perceptual_weight=100, weight_decay=0.002)
    trainer = trainer_for(workspace, plans)
    embedding_loss, validated = trainer._embedding_loss, []

    def watched(embedding, wanted):
        values = embedding_loss(embedding, wanted)
        if not torch.is_grad_enabled():
            validated.append({name: float(value) for name, value in values.items()})
        return values

    trainer._embedding_loss = watched
    trainer.run_training()
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.002]
    logged = trainer.logger.get_checkpoint()
    mse, perceptual = (np.array(logged[name][:2]) for name in PARTS[:2])
    assert (100 * perceptual > 0.01 * mse).all()
    assert logged["train_losses"][:2] == pytest.approx(mse + 100 * perceptual)
    assert logged["val_losses"][:2] == pytest.approx([values["loss"] for values in validated])
    assert logged[PARTS[2]][:2] == pytest.approx([values[PARTS[0]] for values in validated])
    for values in validated:
        assert values["loss"] == pytest.approx(values[PARTS[0]] + 100 * values[PARTS[1]])
    logits = torch.randn(2, trainer.label_manager.num_segmentation_heads, 16, 16)
    target = torch.randint(0, 2, (2, 1, 16, 16)).float()
    assert trainer.loss(logits, target) == trainer.loss.dc(logits, target)
    default = trainer_for(workspace, plans_for(workspace, sam, name="nnUNetPlans_default"))
    assert default.weight_decay == 0.001


@pytest.mark.slow
@pytest.mark.parametrize(("finished", "stored"), [(1, False), (2, True), (3, False)])
def test_a_training_resumed_in_either_phase_equals_an_undisturbed_one(workspace, sam, stored, finished):
    plans = plans_for(workspace, sam, **({"embeddings": "sam"} if stored else {}))
    if stored:
        assert store_embeddings(workspace, sam) == 0
    whole = trainer_for(workspace, plans)
    whole.run_training()
    expected = weights_of(whole.kd_sam)
    folder = folder_of(workspace)
    shutil.rmtree(folder)

    stopped = trainer_for(workspace, plans)
    stop_within(stopped, 2 * finished + 1)
    if finished >= 2:
        sam.unlink()  # phase 2 needs neither SAM nor embeddings
        shutil.rmtree(workspace.preprocessed / "nnUNetPlans_2d_embeddings_sam", ignore_errors=True)
    resumed = trainer_for(workspace, plans, resume=True)
    resumed.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert resumed.current_epoch == finished
    resumed.run_training()
    logged, undisturbed = resumed.logger.get_checkpoint(), whole.logger.get_checkpoint()
    for name in ("train_losses", "val_losses", "lrs", *PARTS):
        np.testing.assert_allclose(logged[name], undisturbed[name], rtol=1e-6, equal_nan=True)
    for name, weight in weights_of(resumed.kd_sam).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("finished", [1, 3])
def test_a_training_resumes_with_the_current_settings(workspace, sam, finished):
    begun = plans_for(workspace, sam, weight_decay=0.002, plateau_patience=5)
    stop_within(trainer_for(workspace, begun), 2 * finished + 1)
    trainer = trainer_for(workspace, plans_for(workspace, sam, weight_decay=0.05, plateau_patience=3), resume=True)
    trainer.load_checkpoint(str(folder_of(workspace) / "checkpoint_latest.pth"))
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.05]
    state = trainer.lr_scheduler.state_dict()
    assert (state["patience"], state["last_epoch"]) == (3, finished if finished < 2 else finished - 2)


@pytest.mark.slow
def test_early_stopping_keeps_the_best_encoder_and_plateaus_lower_the_rate(workspace, sam):
    schedule = {**SCHEDULE, "num_epochs": 8}
    options = {"encoder_epochs": 7, "patience": 3, "plateau_patience": 0, "perceptual_weight": 0}
    trainer = trainer_for(workspace, plans_for(workspace, sam, schedule, **options))
    trainer.initialize()
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 0.5, 0.4, 0.3])
    validated = trainer.validation_step
    trainer.validation_step = lambda batch: {**validated(batch), "loss": np.float32(current[0])}
    current, encoders = [], []
    started = trainer.on_validation_epoch_start

    def next_loss():
        current[:] = [next(losses)]
        encoders.append(weights_of(trainer.kd_sam.encoder))
        started()

    trainer.on_validation_epoch_start = next_loss
    trainer.run_training()
    assert trainer.progress.end == 5 and trainer.progress.best_epoch == 1 and trainer.progress.best_loss == 1.0
    assert same(weights_of(trainer.kd_sam.encoder), encoders[1]) and not same(encoders[1], encoders[2])
    rates = trainer.logger.get_checkpoint()["lrs"]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 1e-4, 1e-5, 1e-6, 1e-4, 1e-4, 1e-4])


def test_the_encoder_starts_from_a_file_of_weights(workspace, sam, tmp_path):
    torch.manual_seed(4)
    weights = torchvision.models.resnet50().state_dict()
    torch.save(weights, tmp_path / "resnet50.pth")
    plans = plans_for(workspace, sam, encoder_weights=str(tmp_path / "resnet50.pth"))
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["blocks"] = [3, 4, 6, 3]
    trainer = trainer_for(workspace, plans)
    trainer.initialize()
    own = trainer.kd_sam.encoder.resnet.state_dict()
    assert torch.equal(own["layer3.5.conv2.weight"], weights["layer3.5.conv2.weight"])
    torch.testing.assert_close(own["conv1.weight"].sum(1), weights["conv1.weight"].sum(1))


@pytest.mark.parametrize("variant", [variants.use_regions, variants.use_ignore_label])
def test_regions_and_ignored_voxels(workspace, sam, variant):
    variant(workspace)
    trainer = trainer_for(workspace, plans_for(workspace, sam, {**SCHEDULE, "num_epochs": 2}))
    trainer.run_training()
    assert trainer.kd_sam.decoder.background == (variant is variants.use_ignore_label)
    assert np.isfinite(trainer.logger.get_checkpoint()["segmentation"][1])


def test_a_teachers_plans_are_enough(workspace, sam):
    """The network and the configuration follow from the trainer, like the width of other students."""
    method = {"checkpoint": str(sam), "model_type": "tiny", "perceptual_weights": "random"}
    plans = workspace.plans("nnUNetPlans", training=SCHEDULE, method=method)
    trainer = trainer_for(workspace, plans)
    name = trainer.configuration_manager.network_arch_class_name
    assert name == "nnunet_kd.networks.kd_sam.KDSAM" and trainer.configuration_manager.batch_size == 16
    with pytest.raises(ValueError, match="trains the configurations 2d, not 3d_fullres"):
        make_trainer(nnUNetTrainerKDSAM, plans, workspace)
    with pytest.raises(
        ValueError, match="tiny takes images of 128 pixels, but the plans give KDSAM an image_size of 1024"
    ):
        trainer.initialize()  # KD-SAM in the plans has SAM's published frame


@pytest.mark.parametrize(
    ("method", "training", "kind", "words"),
    [
        ({"checkpoint": None}, {}, ValueError, "nnunet_kd.method.checkpoint must be a file with SAM's weights"),
        ({"checkpoint": "/none.pth"}, {}, FileNotFoundError, "method.checkpoint: SAM's weights are missing at"),
        ({"model_type": "vit_x"}, {}, ValueError, "segment_anything has no model 'vit_x'"),
        ({"encoder_epoch": 3}, {}, ValueError, "did you mean 'encoder_epochs'?"),
        ({"encoder_epochs": 4}, {}, ValueError, "must be below the 4 epochs of the training, got 4"),
        ({"encoder_epochs": 1.5}, {}, ValueError, "a fraction of the training, got 1.5"),
        ({"patience": 0}, {}, ValueError, "method.patience must be at least 1"),
        ({"channels": [0, 7]}, {}, ValueError, "there is no channel 7: the images have 3"),
        ({"embeddings": "none"}, {}, FileNotFoundError, "embeddings 'none' are missing in .* Make them: nnunet_kd"),
        ({"embeddings": "none", "channels": [1, 2]}, {}, FileNotFoundError, ".pth --channels 1 2 --name none$"),
        ({"perceptual_weights": "/vgg"}, {}, FileNotFoundError, "there are no weights of VGG-16 in /vgg"),
        ({}, {"ema_decay": 0.9}, NotImplementedError, "ema_decay"),
        ({}, {"early_stopping": 5}, NotImplementedError, "early_stopping: KD-SAM ends phase 1 by its own setting"),
    ],
)
def test_faults_are_reported_before_the_training(workspace, sam, method, training, kind, words):
    with pytest.raises(kind, match=words):
        trainer_for(workspace, plans_for(workspace, sam, training, **method)).on_train_start()
    assert not (folder_of(workspace) / "checkpoint_latest.pth").exists()


def test_other_plans_and_other_embeddings_are_refused(workspace, sam):
    plans = workspace.plans("unet", student={"source_plans": "nnUNetPlans"}, method={"checkpoint": str(sam)})
    plans["nnunet_kd"]["method"].update(model_type="tiny", perceptual_weights="random")
    with pytest.raises(
        ValueError,
        match="trains KDSAM, but the plans name PlainConvUNet: make plans with nnunet_kd plan --network kd_sam",
    ):
        trainer_for(workspace, plans).initialize()
    plans = plans_for(workspace, sam, embeddings="sam", channels=[1])
    assert store_embeddings(workspace, sam) == 0
    with pytest.raises(ValueError, match=r"were made with channels = \[0, 1, 2\], not \[1\]"):
        trainer_for(workspace, plans)
    plans = plans_for(workspace, sam, embeddings="sam")
    (workspace.preprocessed / "nnUNetPlans_2d_embeddings_sam" / "head_001.b2nd").unlink()
    with pytest.raises(ValueError, match=r"embeddings .*head_001.b2nd: the file is missing. Make it: .* --continue"):
        trainer_for(workspace, plans)


def test_a_restarted_training_refuses_embeddings_of_another_sam(workspace, sam):
    """The folder has checkpoints of a training with the SAM that made the embeddings."""
    plans = plans_for(workspace, sam, embeddings="sam")
    assert store_embeddings(workspace, sam) == 0
    trainer_for(workspace, plans).run_training()
    weights = torch.load(sam)
    weights[next(iter(weights))] += 1
    torch.save(weights, sam)
    plans = plans_for(workspace, sam, {**SCHEDULE, "overwrite": True}, embeddings="sam")
    with pytest.raises(ValueError, match="were made with checkpoint_sha256 = "):
        trainer_for(workspace, plans).run_training()
    assert (folder_of(workspace) / "checkpoint_final.pth").is_file()  # nothing is set aside


def test_doctor_looks_for_sams_weights(workspace, sam, capsys):
    plans_for(workspace, sam)
    words = ("doctor", "-d", "598", "-c", "2d", "-p", "nnUNetPlans_kd_sam", "-tr", "nnUNetTrainerKDSAM")
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("no problems found\n")
    sam.unlink()
    assert main(words) == 1
    assert f"FAIL  there are no weights of SAM in {sam}. Fix: name them in the plans" in capsys.readouterr().out


def test_stored_embeddings_belong_to_the_patches_nnunet_predicts(workspace, sam):
    plans_for(workspace, sam)
    assert store_embeddings(workspace, sam, "--channels", "1", "0") == 0
    folder = workspace.preprocessed / "nnUNetPlans_2d_embeddings_sam"
    store = EmbeddingStore(folder)
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    dataset = nnUNetDatasetBlosc2(str(workspace.preprocessed / "nnUNetPlans_2d"))
    image = dataset.load_case("head_002")[0][:]
    patch_size = store.manifest["source"]["patch_size"]
    patches = SlicePatches(image.shape[1:], patch_size)
    stored = store.open("head_002")
    assert stored.shape == (len(patches), 32, 8, 8) and stored.chunks == (1, 32, 8, 8)
    embedder = SamEmbedder(load_sam("tiny", sam), Colours((1, 0), (False, False)), torch.device("cpu"))
    for number in (0, len(patches) // 2, len(patches) - 1):
        cut = torch.from_numpy(patches.cut(image, number))[None]
        torch.testing.assert_close(torch.from_numpy(stored[number]).float(), embedder(cut)[0], atol=2e-3, rtol=2e-3)
    assert main(["soft-labels", "-d", "598", "-c", "3d_fullres", "--embeddings", "--sam", "tiny"]) == 1


@pytest.mark.parametrize(("shape", "patch"), [((3, 20, 30), (16, 16)), ((2, 9, 40), (16, 24)), ((2, 8, 8), (8, 12))])
def test_patches_are_those_of_the_sliding_window(shape, patch):
    """They equal the patches that nnU-Net's predictor crops from a padded slice."""
    from acvl_utils.cropping_and_padding.padding import pad_nd_image
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    volume = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    predictor = nnUNetPredictor(device=torch.device("cpu"), verbose=False)

    class Configuration:
        patch_size = patch

    predictor.configuration_manager = Configuration()
    padded = pad_nd_image(volume, patch, "constant", {"constant_values": 0})
    expected = [padded[where] for where in predictor._internal_get_sliding_window_slicers(padded.shape[1:])]
    patches = SlicePatches(shape, patch)
    assert len(patches) == len(expected)
    for number, one in enumerate(expected):
        np.testing.assert_array_equal(patches.cut(volume, number), one)


def test_colours():
    images = torch.rand(2, 3, 8, 8)
    exact = Colours.of(["RGBTo01Normalization"] * 3)
    torch.testing.assert_close(exact(images), 255 * images)
    stretched = Colours.of(["ZScoreNormalization"] * 4, [3])(torch.randn(2, 4, 30, 30) * 5 + 2)
    assert stretched.shape == (2, 3, 30, 30) and torch.equal(stretched[:, 0], stretched[:, 2])
    assert stretched.min() == 0 and stretched.max() == 255
    assert math.isfinite(float(Colours.of(["ZScoreNormalization"])(torch.zeros(1, 1, 4, 4)).sum()))
    with pytest.raises(ValueError, match="one to three channels, got 4"):
        Colours.of(["ZScoreNormalization"] * 5, [0, 1, 2, 3])


@pytest.mark.slow
@pytest.mark.xdist_group("pictures")  # made once
def test_pictures_through_stock_commands(pictures, sam, tmp_path):
    """Train phase 1 from stored embeddings, then phase 2, resume, and predict without SAM."""
    plans_for(pictures, sam, {"num_epochs": 2}, embeddings="sam")
    size = {SIZE_OF_TINY_SAM: "128"}
    words = f"-d 597 -c 2d -p nnUNetPlans_kd_sam --embeddings --sam tiny --checkpoint {sam}".split()
    pictures.command("nnunet_kd", "soft-labels", *words, "-device", "cpu", **size)
    options = ("597", "2d", "0", "-tr", "nnUNetTrainerKDSAM", "-p", "nnUNetPlans_kd_sam", "-device", "cpu")
    for epochs, of_encoder in ((2, 1), (3, 1)):  # resumes in phase 2
        plans_for(pictures, sam, {"num_epochs": epochs}, embeddings="sam", encoder_epochs=of_encoder)
        pictures.command("nnUNetv2_train", *options, *(("--c",) if epochs > 2 else ()), **size)
    sam.unlink()
    out = tmp_path / "out"
    images = str(pictures.raw / "imagesTs")
    words = ("-d", "597", "-c", "2d", *options[3:], "-f", "0", "-npp", "1", "-nps", "1")
    pictures.command("nnUNetv2_predict", "-i", images, "-o", str(out), *words)
    assert len(list(out.glob("skin_*.png"))) == 2
