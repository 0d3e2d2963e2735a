# ruff: noqa: N803, N806  A, B, C and D are the paper's names
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_kd.networks import selective_scan as module
from nnunet_kd.networks.scan_chunks import scan_chunks, scan_chunks_backward
from nnunet_kd.networks.selective_scan import chunked_scan, selective_scan


def sequential_scan(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False):
    """Evaluate the two equations token by token in float64."""
    u, delta, A, B, C = (x.double() for x in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.double()[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    per_group = u.shape[1] // B.shape[1]
    B, C = (x.repeat_interleave(per_group, 1) for x in (B, C))
    h = u.new_zeros(*u.shape[:2], A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta[:, :, t] * u[:, :, t])[..., None] * B[..., t]
        outputs.append((h * C[..., t]).sum(-1))
    y = torch.stack(outputs, -1)
    return y if D is None else y + D.double()[:, None] * u


def sequences(length, batch=2, channels=6, groups=2, state=3, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -torch.exp(normal(channels, state)),
        "B": normal(batch, groups, state, length),
        "C": normal(batch, groups, state, length),
        "D": normal(channels),
        "delta_bias": normal(channels) - 2,
        "delta_softplus": True,
    }


def relative_error(ours, reference):
    return float((ours.double() - reference).abs().max() / reference.abs().max())


def gradients(scan, given, **options):
    inputs = {name: x.clone().requires_grad_() if torch.is_tensor(x) else x for name, x in given.items()}
    y = scan(**inputs, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad((y * weights.to(y)).sum(), [x for x in inputs.values() if torch.is_tensor(x)])


@pytest.mark.parametrize("length", range(1, 301))
def test_every_length_equals_the_sequential_reference(length):
    given = sequences(length, batch=1, channels=2, groups=1, state=2, seed=length)
    assert relative_error(chunked_scan(**given), sequential_scan(**given)) < 1e-5


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 16, 49, 64, 100, 1000, None])
@pytest.mark.parametrize("length", [1, 2, 63, 100])
def test_every_chunk_size_equals_the_sequential_reference(chunk_size, length):
    given = sequences(length)
    ours, reference = chunked_scan(**given, chunk_size=chunk_size), sequential_scan(**given)
    assert ours.dtype == torch.float32 and relative_error(ours, reference) < 1e-5
    for a, b in zip(
        gradients(chunked_scan, given, chunk_size=chunk_size), gradients(sequential_scan, given), strict=True
    ):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("missing", ["D", "delta_bias", "delta_softplus"])
def test_optional_arguments(missing):
    given = sequences(20, dtype=torch.float64)
    del given[missing]
    torch.testing.assert_close(chunked_scan(**given, chunk_size=6), sequential_scan(**given))


@pytest.mark.parametrize(("length", "chunk_size"), [(1, 1), (5, 5), (11, 4), (9, 1), (16, 16)])
def test_gradcheck(length, chunk_size):
    given = sequences(length, batch=1, channels=4, groups=2, state=2, dtype=torch.float64)
    tensors = [x.requires_grad_() for x in given.values() if torch.is_tensor(x)]
    assert torch.autograd.gradcheck(lambda *x: chunked_scan(*x, delta_softplus=True, chunk_size=chunk_size), tensors)


@pytest.mark.parametrize("size", [1e-6, 30.0])
def test_decays_that_vanish_and_decays_of_one(size):
    """A product of decays underflows after a few tokens or is always 1; states and gradients remain finite."""
    given = sequences(257)
    given |= {"delta": torch.full_like(given["delta"], size), "delta_softplus": False, "delta_bias": None}
    assert relative_error(chunked_scan(**given), sequential_scan(**given)) < 1e-5
    for a, b in zip(gradients(chunked_scan, given), gradients(sequential_scan, given), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_a_later_token_changes_no_earlier_output():
    given = sequences(90)
    changed = dict(given, u=given["u"].clone())
    changed["u"][:, :, 50] += 1
    before, after = chunked_scan(**given, chunk_size=20), chunked_scan(**changed, chunk_size=20)
    assert torch.equal(before[:, :, :50], after[:, :, :50]) and not torch.equal(before[:, :, 50:], after[:, :, 50:])


def test_strided_inputs():
    given = sequences(40)
    strided = {name: x.mT.contiguous().mT if torch.is_tensor(x) and x.ndim > 2 else x for name, x in given.items()}
    assert torch.equal(chunked_scan(**given), chunked_scan(**strided))


def test_autocast_and_half_precision_compute_in_float32():
    given = sequences(70)
    plain = chunked_scan(**given)
    half = {name: x.bfloat16() if name in ("u", "delta", "B", "C") else x for name, x in given.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(chunked_scan(**given), plain, rtol=0, atol=0)
        ours = chunked_scan(**half)
    assert ours.dtype == torch.bfloat16
    reference = sequential_scan(**{name: x.float() if torch.is_tensor(x) else x for name, x in half.items()})
    torch.testing.assert_close(ours, reference.bfloat16(), rtol=1e-2, atol=1e-2)


class Largest(TorchDispatchMode):
    """Record the size of the largest storage that any operation returns, also inside the scan's two operators."""

    numbers = 0
    inside = {  # noqa: RUF012
        torch.ops.nnunet_kd.selective_scan.default: scan_chunks,
        torch.ops.nnunet_kd.selective_scan_backward.default: scan_chunks_backward,
    }

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.inside:
            with self:
                return self.inside[function](*args)
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if torch.is_tensor(tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def memory(length, **options):
    """Return the size of all tensors kept for the backward pass, and of the largest tensor in both passes."""
    given = sequences(length, batch=1, channels=32, groups=4, state=16)
    inputs = {name: x.requires_grad_() if torch.is_tensor(x) else x for name, x in given.items()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = chunked_scan(**inputs, **options)
        y.sum().backward()
    return sum(storage.nbytes() for storage in kept.values()) // 4, largest.numbers


def test_memory_is_linear_in_length_and_states_are_not_kept():
    measured = {length: memory(length, chunk_size=64) for length in (512, 1024, 2048, 4096)}
    kept = {length: numbers for length, (numbers, _) in measured.items()}
    grows = [(kept[2 * length] - kept[length]) / length for length in (512, 1024, 2048)]
    assert max(grows) < 1.01 * min(grows)
    states = 32 * 16 * 4096
    assert kept[4096] < states
    assert measured[4096][1] <= 4 * 16 * 4096  # B and C, the largest of the sequences


def test_default_chunks_have_a_fixed_number_of_states():
    _, largest = memory(8192)
    assert largest <= 1.1 * module.CHUNK_STATES["cpu"] < 32 * 16 * 8192


def test_compiled_without_a_graph_break():
    """A break would compile a network with many scans in as many parts, once more for every length."""
    given = sequences(70)
    compiled = torch.compile(chunked_scan, backend="aot_eager", fullgraph=True)
    for ours, plain in zip(gradients(compiled, given), gradients(chunked_scan, given), strict=True):
        assert torch.equal(ours, plain)


def test_the_operator_as_pytorch_expects_it():
    """PyTorch checks the schema, the shapes and strides without data, and the gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 2, 3, 11), (2, 2, 3, 11), (2, 4, 3), (2, 2, 4, 11), (2, 2, 4, 11))
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    torch.library.opcheck(
        torch.ops.nnunet_kd.selective_scan, (*tensors, 4), test_utils=("test_schema", "test_faketensor")
    )
    starts = torch.randn(3, 2, 2, 4, 3)
    inputs = [tensor.detach() for tensor in (tensors[0], *tensors)]
    operator = torch.ops.nnunet_kd.selective_scan_backward
    torch.library.opcheck(operator, (*inputs, starts, 4), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("has_kernel", [True, False])
def test_mamba_ssm_without_its_kernel(monkeypatch, has_kernel):
    """Newer versions can be imported without the kernel, and crash when they call it."""
    interface = ModuleType("selective_scan_interface")
    interface.selective_scan_fn = lambda *_: None
    interface.selective_scan_cuda = ModuleType("selective_scan_cuda") if has_kernel else None
    package, operators = ModuleType("mamba_ssm"), ModuleType("mamba_ssm.ops")
    package.ops, operators.selective_scan_interface = operators, interface
    for name, one in (("", package), (".ops", operators), (".ops.selective_scan_interface", interface)):
        monkeypatch.setitem(sys.modules, f"mamba_ssm{name}", one)
    assert module.installed_kernel() == (interface.selective_scan_fn if has_kernel else None)


def test_without_a_gpu_an_installed_kernel_is_not_called(monkeypatch):
    given = sequences(5)
    monkeypatch.setattr(module, "mamba_kernel", lambda *x, **options: pytest.fail("called"))
    assert torch.equal(selective_scan(**given), chunked_scan(**given))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("length", [1, 100, 4096])
def test_on_a_gpu(length):
    given = sequences(length, channels=32, groups=4, state=16)
    on_gpu = {name: x.cuda() if torch.is_tensor(x) else x for name, x in given.items()}
    reference = sequential_scan(**on_gpu)
    assert relative_error(chunked_scan(**on_gpu), reference) < 1e-5
    if module.mamba_kernel is None:
        pytest.skip("mamba-ssm is not installed")
    assert relative_error(selective_scan(**on_gpu), reference) < 1e-5
    for a, b in zip(gradients(selective_scan, on_gpu), gradients(chunked_scan, on_gpu), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": torch.zeros(2, 6)}, r"expected u \(batch, channels, length\) with at least one token, got \(2, 6\)"),
        ({"u": torch.zeros(2, 6, 0)}, r"at least one token, got \(2, 6, 0\)"),
        ({"B": torch.zeros(2, 3, 9)}, r"B \(batch, groups, state, length\), got \(6, 3\) and \(2, 3, 9\)"),
        ({"B": torch.zeros(2, 4, 3, 9)}, "6 channels are not divisible into 4 groups"),
        ({"C": torch.zeros(2, 2, 3, 8)}, r"expected C \(2, 2, 3, 9\) for u \(2, 6, 9\), got \(2, 2, 3, 8\)"),
        ({"D": torch.zeros(5)}, r"expected D \(6,\) for u \(2, 6, 9\), got \(5,\)"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        chunked_scan(**{**sequences(9), **changes})
