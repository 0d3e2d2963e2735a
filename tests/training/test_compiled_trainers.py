"""Every trainer's step with DDP around the compiled network, nnU-Net's way on several GPUs, equals the eager one."""

import pytest
import torch
from torch import distributed as dist
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from tests.conftest import SHORT, make_trainer
from tests.training.methods import store_if_read, trainer_class
from tests.training.small_brainseg_dmif import plans_for as brainseg_plans

# trainer, method, epoch
CASES = {
    "NoKD": ("NoKD", {}, 0),
    "DCD": ("DCD", {"ramp": None}, 0),
    "FitNets": ("FitNets", {}, 0),
    "LogitsKD": ("LogitsKD", {}, 0),
    "CWD": ("CWD", {}, 0),
    "IFVD": ("IFVD", {"weight": 1}, 0),
    "DPRD": ("DPRD", {"ramp": None, "projection": "learned"}, 0),
    "ReCoKD": ("ReCoKD", {"ramp": None}, 0),
    "FreeKD tuning": ("FreeKD", {"prompt_epochs": 1}, 0),
    "FreeKD": ("FreeKD", {"prompt_epochs": 1}, 1),
    "DualSelfKD": ("DualSelfKD", {}, 0),
    "SoftKD": ("SoftKD", {}, 0),
    "SAMKD": ("SAMKD", {}, 0),
    "BrainSegDMIF": ("BrainSegDMIF", {}, 0),
    "RKD": ("RKD", {}, 0),
    "CIRKD": ("CIRKD", {"pixels": 512, "pixel_memory": 1100}, 0),  # nothing is left to random numbers
    "SKD": ("SKD", {}, 0),
}


@pytest.fixture
def meet(tmp_path, monkeypatch):
    """A function that starts gloo with one process; nnU-Net's constructor would take it for one of several GPUs.

    The first bucket of gradients is so small that a compiled forward pass is split.
    """
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 64)
    yield lambda: dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    dist.destroy_process_group()


def step(trainer, epoch):
    """Return the gradients of student and adapters after one step, and its values."""
    trainer.current_epoch = epoch
    trainer.network.train()
    generator = torch.Generator().manual_seed(0)
    patch = trainer.configuration_manager.patch_size
    images = torch.randn(2, 3, *patch, generator=generator)
    if trainer.sources.soft_labels is not None:
        images = torch.cat([images, torch.randn(2, 3, *patch, generator=generator), torch.ones(2, 1, *patch)], 1)
    target = torch.randint(0, 3, (2, 1, *patch), generator=generator).float()
    factors = trainer._get_deep_supervision_scales()  # none if the loss scales the labels itself
    sizes = [[int(side * one) for side, one in zip(patch, scale, strict=True)] for scale in factors or []]
    targets = [torch.nn.functional.interpolate(target, size, mode="nearest-exact") for size in sizes] or target
    trainer.optimizer.step = lambda: None
    values = trainer.train_step({"data": images, "target": targets})
    return {name: p.grad for name, p in trainer.trained().named_parameters()}, values


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("case", CASES)
def test_compiled_under_ddp(workspace, meet, case):
    name, method, epoch = CASES[case]
    plans = brainseg_plans(workspace) if name == "BrainSegDMIF" else workspace.plans(training=SHORT, method=method)
    store_if_read(workspace, name, "2d")
    made = []
    for _ in range(2):
        trainer = make_trainer(trainer_class(name), plans, workspace, configuration="2d")
        trainer.initialize()
        if hasattr(trainer.loss, "weight_factors"):  # BrainSegDMIF's loss has none
            trainer.loss.weight_factors = [*trainer.loss.weight_factors[:-1], 1e-6]  # as nnU-Net's under DDP
        made.append(trainer)
    eager, compiled = made
    meet()
    expected, values = step(eager, epoch)

    torch._dynamo.reset()
    counters.clear()
    parts = []

    def count(graph, inputs):
        parts.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    joint = compiled.network
    if (teacher := compiled.distiller.teacher) is not None:
        teacher.compile(backend="aot_eager")
    compiled.network = DistributedDataParallel(torch.compile(joint, backend=count), bucket_cap_mb=0.02)
    compiled.is_ddp = True
    ours, found = step(compiled, epoch)
    assert len(parts) >= 3 and not counters["graph_break"], counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2  # the student and its teacher
    assert found == pytest.approx(values, rel=1e-4)
    assert ours.keys() == expected.keys()
    for parameter, gradient in expected.items():
        if gradient is None:  # prompts that are tuned no longer
            assert ours[parameter] is None, parameter
        else:
            message = f"{parameter}: {{}}".format
            torch.testing.assert_close(ours[parameter], gradient, rtol=1e-4, atol=1e-6, msg=message)
