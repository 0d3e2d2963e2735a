import pytest
import torch
from torch import nn

from nnunet_kd.pruning.heads import classes_of, draw_by_class, fit_head
from nnunet_kd.pruning.reconstruction import reconstruct
from nnunet_kd.pruning.selection import selected_weights


def problem(heads, classes=3, noise=0.0, positions=4000):
    """Return features, their logits under a linear map, and the map."""
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(positions, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0]) + 2
    weight = torch.randn(5, classes, generator=generator) / read.std(0)[:, None]
    bias = torch.randn(classes, generator=generator)
    return read, read @ weight + bias + noise * torch.randn(positions, classes, generator=generator), weight, bias


@pytest.mark.parametrize("heads", ["classes", "regions"])
def test_a_linear_map_is_recovered(heads):
    read, logits, *_ = problem(heads)
    found, intercept = fit_head(read, logits, torch.ones(len(read)), torch.zeros(5, 3), torch.zeros(3), heads)
    given = read.double() @ found + intercept
    probabilities = torch.sigmoid if heads == "regions" else torch.nn.Softmax(1)
    torch.testing.assert_close(probabilities(given), probabilities(logits.double()), rtol=0, atol=5e-3)


@pytest.mark.parametrize("heads", ["classes", "regions"])
def test_every_class_keeps_its_volume(heads):
    """Unlike with least squares, the mean probability of even a rare class is the teacher's."""
    read, logits, *_ = problem(heads, noise=3.0)
    logits[:, 2] -= 6
    counts = torch.rand(len(read), generator=torch.Generator().manual_seed(1))
    found, intercept = fit_head(read, logits, counts, torch.zeros(5, 3), torch.zeros(3), heads)
    given = read.double() @ found + intercept
    probabilities = torch.sigmoid if heads == "regions" else torch.nn.Softmax(1)
    share = (counts / counts.sum()).double()
    torch.testing.assert_close(
        share @ probabilities(given), share @ probabilities(logits.double()), rtol=2e-3, atol=1e-5
    )


def test_constant_features_give_finite_weights():
    logits = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    found, intercept = fit_head(
        torch.full((100, 4), 7.0), logits, torch.ones(100), torch.zeros(4, 3), torch.zeros(3), "classes"
    )
    assert torch.isfinite(found).all() and torch.isfinite(intercept).all()


def test_positions_of_rare_classes_are_drawn_more_often_with_lower_weights():
    classes = torch.zeros(100_000, dtype=torch.long)
    classes[:20] = 1
    classes[20:5000] = 2
    positions, weights = draw_by_class(classes, 6000, torch.Generator().manual_seed(0))
    drawn = classes[positions]
    assert len(positions) == 6000
    assert (drawn == 1).sum() >= 900  # a uniform draw would have one or two
    for label in range(3):
        share = float(weights[drawn == label].sum() / weights.sum())
        assert share == pytest.approx(float((classes == label).double().mean()), rel=0.1)


def test_voxels_in_the_same_regions_have_one_class():
    logits = torch.tensor([[1.0, 1, -1, -1], [1.0, -1, -1, 1]]).T.reshape(1, 4, 2).movedim(1, 2)
    classes = classes_of(logits, "regions")
    assert len(classes.unique()) == 4
    assert torch.equal(classes_of(torch.stack((logits[:, 0], logits[:, 1]), 1), "classes"), logits.argmax(1).flatten())


class Segmenter(nn.Module):
    """Two layers and a head, with images of one large and one small structure."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.InstanceNorm2d(width, affine=True)
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, images):
        return self.head(torch.tanh(self.norm(self.first(images))))


def test_a_rare_class_is_not_lost():
    """Features identify the class, but under least squares its logit is never the highest."""
    torch.manual_seed(0)
    images = 0.5 * torch.randn(4, 1, 48, 48)
    images[:, :, 8:16, 8:16] += 2
    images[:, :, 30:34, 30:34] -= 1.2
    classes = torch.zeros(4, 48, 48, dtype=torch.long)
    classes[:, 8:16, 8:16], classes[:, 30:34, 30:34] = 1, 2
    teacher = Segmenter(12)
    optimizer = torch.optim.Adam(teacher.parameters(), 0.03)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(images), classes).backward()
        optimizer.step()
    teacher.eval()

    def sensitivity(heads):
        student = Segmenter(3)
        student.load_state_dict(selected_weights(teacher, student))
        reconstruct(teacher, student, [images[:2], images[2:]], heads=heads)
        found = student(images).argmax(1)
        return [float((found == label)[classes == label].double().mean()) for label in (1, 2)]

    assert min(sensitivity(None)) < 0.2
    assert min(sensitivity("classes")) > 0.6
