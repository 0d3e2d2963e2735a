from dataclasses import replace

import pytest
import torch

from nnunet_kd.distillation.methods import (
    CWD,
    DCD,
    FITNETS,
    FREEKD,
    IFVD,
    LOGITS,
    SOFT_LABELS,
    TERMS,
    Method,
    build_terms,
)
from nnunet_kd.distillation.step import SoftLabels, TrainStep
from nnunet_kd.distillation.terms import LogitsTerm, StageTerm
from nnunet_kd.losses import DCDLoss
from nnunet_kd.networks.stages import EncoderStages, match_stages
from nnunet_kd.trainers.nnUNetTrainerIFVD import nnUNetTrainerIFVD

TERM = Method("dcd", StageTerm, DCDLoss, {"weight": 0.01, "ramp": (0.1, 0.5), "levels": 2})
TEACHER = EncoderStages((32, 64, 128), ((1, 1, 1), (2, 2, 2), (4, 4, 4)))


class Labels:
    """Labels without an ignore label, for exclusive classes."""

    regions = False
    num_classes = 3

    def valid(self, target):
        return None

    def classes(self, target):
        return target[:, 0].long()


def step(**given):
    lists = ("logits", "encoder", "decoder", "teacher_logits", "teacher_encoder")
    return TrainStep(
        **{
            **{name: [] for name in lists},
            "stages": [],
            "targets": [None] * 9,
            "labels": Labels(),
            "teacher": None,
            "task_loss": None,
            **given,
        }
    )


def built(term=TERM, num_epochs=100, **numbers):
    return term.changed(numbers, "here").build(num_epochs, "here")


def test_plans_override_the_method_which_overrides_the_loss():
    term = built(weight=0.05, bands="detail")
    assert term.weight == 0.05
    assert (term.loss.levels, term.loss.bands, term.loss.wavelet) == (2, "detail", "db4")
    assert built(levels=1, ramp=None).loss.levels == 1
    assert built(ramp=None).weight_at(0) == 0.01
    assert built().weight_at(5) == 0


@pytest.mark.parametrize(
    ("term", "numbers", "message"),
    [
        (TERM, {"level": 2}, "unknown key 'level' in here: did you mean 'levels'"),
        (TERM, {"weight": "a"}, "here: weight must be a number above 0, got 'a'"),
        (TERM, {"weight": 0}, "here: weight must be a number above 0, got 0"),
        (SOFT_LABELS, {"weight": -1}, "here: weight must be a number of at least 0, got -1"),
        (TERM, {"wavelet": 4}, "here: wavelet must be a name such as 'db4', got 4"),
        (TERM, {"wavelet": ["db4"]}, "here: wavelet must be a name such as 'db4', got"),
        (TERM, {"bands": ["lll"]}, "here: bands must be the name of a selection, got"),
        (TERM, {"levels": 0}, "here: levels must be a positive integer, got 0"),
        (TERM, {"ramp": [200, 1]}, r"here: ramp \[200, 1\] leaves the weight at 0"),
        (TERM, {"stages": []}, r"here: stages must be null or a list of stage numbers from 0, got \[\]"),
        (TERM, {"stages": [-1]}, r"here: stages must be null or a list of stage numbers from 0, got \[-1\]"),
        (FITNETS, {"kwargs": 1}, "unknown key 'kwargs' in here"),
        (FREEKD, {"prompt_epochs": 0}, "here: prompt_epochs must be a number above 0, got 0"),
        (FREEKD, {"prompt_epochs": 2.0}, "here: prompt_epochs is a whole number of epochs, or a fraction .*, got 2.0"),
        (FREEKD, {"prompt_epochs": 100}, "prompt_epochs 100 leaves none of 100 epochs for the student"),
        (LOGITS, {"scales": "some"}, "here: scales must be 'all' or 'full', got 'some'"),
        (LOGITS, {"convex": 1}, "here: convex must be true or false, got 1"),
        (LOGITS, {"weight": 1.5}, "here: the weight of a convex term must be at most 1, got 1.5"),
        (TERM, {"projection": "fixed"}, "here: projection must be 'learned' or 'frozen', got 'fixed'"),
        (IFVD, {"projection": "frozen"}, "unknown key 'projection' in here"),
        (CWD, {"projection": "frozen"}, "unknown key 'projection' in here"),
        (CWD, {"stages": [0]}, "unknown key 'stages' in here: did you mean 'scales'"),
    ],
)
def test_errors_name_the_key(term, numbers, message):
    with pytest.raises(ValueError, match=message):
        built(term, **numbers)


STUDENT = EncoderStages((8, 8, 16, 32), ((1, 1, 1), (1, 2, 2), (2, 2, 2), (4, 4, 4)))


def random_stages():
    sizes = [(8, 8, 8), (8, 4, 4), (4, 4, 4), (2, 2, 2)]
    features = [torch.randn(1, w, *size) for w, size in zip(STUDENT.widths, sizes, strict=True)]
    taught = [torch.randn(1, w, *sizes[i]) for w, i in zip(TEACHER.widths, (0, 2, 3), strict=True)]
    return features, taught


def test_sum_over_stages_on_the_same_grid():
    pairs = match_stages(STUDENT, TEACHER)
    assert pairs == [(0, 0), (2, 1), (3, 2)]
    term = built()
    adapters = term.adapters(STUDENT, TEACHER)
    assert [tuple(adapter.weight.shape[:2]) for adapter in adapters] == [(32, 8), (64, 16), (128, 32)]
    features, taught = random_stages()
    parts = [term.loss(features[i], taught[j], a) for (i, j), a in zip(pairs, adapters)]  # noqa: B905
    now = step(encoder=features, teacher_encoder=taught, stages=pairs)
    torch.testing.assert_close(term(now, adapters), sum(parts))

    some = built(stages=[3, 0])
    torch.testing.assert_close(
        some(now, torch.nn.ModuleList([adapters[0], adapters[2]])),
        term.loss(features[0], taught[0], adapters[0]) + parts[2],
    )
    assert [tuple(adapter.weight.shape[:2]) for adapter in some.adapters(STUDENT, TEACHER)] == [(32, 8), (128, 32)]
    with pytest.raises(ValueError, match=r"dcd: stage 1 cannot be distilled, only \[0, 2, 3\]"):
        built(stages=[0, 1]).adapters(STUDENT, TEACHER)


def test_classes_reach_the_loss_that_needs_them():
    features, taught = random_stages()
    target = torch.randint(0, 3, (1, 1, 8, 8, 8))
    term = built(IFVD)
    now = step(encoder=features, teacher_encoder=taught, stages=[(0, 0), (2, 1)], targets=[target])
    expected = sum(term.loss(features[i], taught[j], classes=target[:, 0]) for i, j in now.stages)
    torch.testing.assert_close(
        term(now, term.adapters(STUDENT, EncoderStages((32, 64), TEACHER.strides[:2]))), expected
    )


def test_scales_of_deep_supervision():
    """Each scale halves the weight; nnU-Net never trains the student's coarsest, and the teacher has no (5, 5)."""
    sizes = [(20, 20), (10, 10), (5, 5), (2, 2)]
    ours = [torch.randn(1, 3, *size) for size in sizes]
    theirs = [torch.randn(1, 3, *size) for size in (sizes[0], sizes[1], sizes[3])]
    now = step(logits=ours, teacher_logits=theirs)
    term = built(LOGITS)
    each = [term.loss(a, b) for a, b in zip(ours, theirs[:2], strict=False)]
    torch.testing.assert_close(term(now, term.adapters(None, None)), (each[0] + each[1] / 2) / 1.5)
    torch.testing.assert_close(built(LOGITS, scales="full")(now, None), each[0])
    torch.testing.assert_close(term(step(logits=ours[:1], teacher_logits=theirs), None), each[0])


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("declared", [LOGITS, CWD.changed({"scales": "all"})], ids=["logits", "cwd"])
def test_logits_are_compared_where_their_own_target_is_annotated(declared, regions):
    sizes = [(12, 12), (6, 6), (3, 3)]
    ours, theirs = ([torch.randn(2, 3, *size) for size in sizes] for _ in range(2))
    targets = [(torch.rand(2, 1, *size) > 0.4).float() for size in sizes]
    labels = Labels()
    labels.regions, labels.valid = regions, lambda target: target > 0
    term = built(declared)
    now = step(logits=ours, teacher_logits=theirs, targets=targets, labels=labels)
    pairs = list(zip(ours, theirs, targets, strict=True))[:2]
    each = [term.loss(a, b, regions=regions, valid=target > 0) for a, b, target in pairs]
    assert all(abs(value - term.loss(a, b, regions=regions)) > 1e-4 for value, (a, b, _) in zip(each, pairs))  # noqa: B905
    if declared is LOGITS:
        assert abs(each[0] - term.loss(*pairs[0][:2], regions=not regions, valid=targets[0] > 0)) > 1e-4
    torch.testing.assert_close(term(now, None), (each[0] + each[1] / 2) / 1.5)


@pytest.mark.parametrize("regions", [False, True])
def test_only_annotated_voxels_with_soft_labels_count(regions):
    logits, soft = torch.randn(2, 2, 3, 6, 6).unbind()
    there, annotated = torch.rand(2, 2, 1, 6, 6).unbind()
    there, annotated = there > 0.4, annotated > 0.4
    labels = Labels()
    labels.regions, labels.valid = regions, lambda target: annotated
    term = built(SOFT_LABELS)
    now = step(logits=[logits], soft_labels=SoftLabels(soft, there), labels=labels)
    each = [
        term.loss(logits, soft, regions=kind, valid=valid).item()
        for kind in (regions, not regions)
        for valid in (there & annotated, there, annotated)
    ]
    assert len(set(each)) == 6 and term(now, None).item() == each[0]
    labels.valid = lambda target: None
    assert term(now, None).item() == each[1]


def test_no_common_grid():
    with pytest.raises(ValueError, match="no encoder stage of the student"):
        match_stages(EncoderStages((8,), ((1, 3, 3),)), TEACHER)


def test_prompts_are_tuned_first():
    term = built(FREEKD, num_epochs=30)
    assert (term.prompt_epochs, term.tunes_at(1), term.tunes_at(2)) == (2, True, False)
    assert term.weight_at(1) == 0 and term.weight_at(2) == 1
    assert built(FREEKD, num_epochs=2).prompt_epochs == 1 and built(FREEKD, prompt_epochs=7).prompt_epochs == 7
    ramped = built(FREEKD, num_epochs=20, prompt_epochs=10, ramp=[2, 4])
    assert [ramped.weight_at(epoch) for epoch in (9, 11, 14, 16)] == [0, 0, pytest.approx(0.5), 1]
    adapters = term.adapters(STUDENT, TEACHER)
    assert len(list(term.frozen(2, adapters))) == 3 and not list(term.frozen(1, adapters))


def test_prompts_are_tuned_by_what_the_teacher_decodes_of_filtered_features():
    """It decodes filtered features at the matched stages and unchanged ones elsewhere; redundancy is averaged."""
    features, taught = random_stages()
    taught.insert(1, torch.randn(1, 48, 4, 4, 8))  # on a grid that the student does not have

    class Decoding:
        def decode(self, features):
            self.seen = features
            return sum(stage.square().mean() for stage in features)

    teacher, target = Decoding(), torch.tensor(2.0)
    term = built(FREEKD)
    now = step(
        encoder=features,
        teacher_encoder=taught,
        stages=[(0, 0), (2, 2), (3, 3)],
        teacher=teacher,
        targets=[target],
        task_loss=lambda logits, target: logits * target,
    )
    adapters = term.adapters(STUDENT, TEACHER)
    value = term.tune(now, adapters)
    expected = [term.loss.tuning(taught[j], adapter) for j, adapter in zip((0, 2, 3), adapters, strict=True)]
    for j, (filtered, _) in zip((0, 2, 3), expected, strict=True):
        torch.testing.assert_close(teacher.seen[j], filtered)
        assert not torch.equal(filtered, taught[j])
    assert teacher.seen[1] is taught[1]
    redundancy = sum(overlap for _, overlap in expected) / 3
    torch.testing.assert_close(value, 2 * sum(stage.square().mean() for stage in teacher.seen) + redundancy)
    assert redundancy > 0


def test_ifvds_trainer_has_the_authors_settings():
    ifvd, logits = build_terms(nnUNetTrainerIFVD.terms, {}, 100)
    assert (ifvd.name, ifvd.weight, ifvd.stages) == ("ifvd", 200, None)
    assert (logits.name, logits.weight, logits.loss.temperature) == ("logits", 10, 1)
    assert not logits.convex and not logits.all_scales


def test_every_term_can_be_built_and_shows_its_settings():
    assert list(TERMS) == [
        "dcd",
        "logits",
        "fitnets",
        "cwd",
        "ifvd",
        "freekd",
        "soft_labels",
        "dual_self",
        "dprd",
        "reco_kd",
        "rkd",
        "cirkd",
        "skd",
    ]
    for name, term in TERMS.items():
        assert str(built(term)).startswith(f"{name}: weight {term.numbers['weight']:g}")


def names(own, method):
    return [term.name for term in build_terms(own, method, 100)]


def test_terms_are_kept_added_or_replaced():
    assert names((DCD,), {}) == ["dcd"]
    assert names((DCD,), {"levels": 1, "add": [{"name": "logits"}]}) == ["dcd", "logits"]
    assert names((DCD, CWD), {"terms": [{"name": "ifvd"}, {"name": "cwd"}]}) == ["ifvd", "cwd"]
    assert names((), {}) == [] and names((), {"add": [{"name": "cwd"}]}) == ["cwd"]
    assert names(None, {"weight": 3, "add": [{"name": "cwd"}]}) == []  # settings of other methods are ignored
    (first, second) = build_terms((DCD, CWD), {"weight": 0.5}, 100)
    assert (first.weight, second.weight) == (
        0.5,
        CWD.numbers["weight"],
    )  # settings outside a list belong to the first term


def test_listed_terms_have_default_settings_whatever_the_trainer_has():
    logits = Method("logits", LogitsTerm, LOGITS.loss, {"weight": 10.0, "temperature": 1.0})
    own = (logits, replace(CWD, name="mine"))
    (term,) = build_terms(own, {}, 100)[:1]
    assert (term.weight, term.loss.temperature, term.convex) == (10, 1, False)
    (term, mine) = build_terms(own, {"terms": [{"name": "logits"}, {"name": "mine"}]}, 100)
    assert (term.weight, term.loss.temperature, term.convex) == (0.3, 3, True)
    assert mine.weight == CWD.numbers["weight"]


@pytest.mark.parametrize(
    ("own", "method", "message"),
    [
        ((), {"levels": 1}, "nnunet_kd.method: 'levels' belongs to a term: name the term under 'terms' or 'add'"),
        ((DCD,), {"terms": [], "levels": 1}, "nnunet_kd.method.terms must be a list like"),
        ((DCD,), {"terms": {"name": "dcd"}}, "nnunet_kd.method.terms must be a list like .*, got {'name': 'dcd'}"),
        ((DCD,), {"terms": ["dcd"]}, r"nnunet_kd.method.terms\[0\] must be an object with a name, got 'dcd'"),
        ((DCD,), {"terms": [{"name": ["dcd"]}]}, r"nnunet_kd.method.terms\[0\] needs a name: dcd, logits"),
        ((DCD,), {"terms": [{"weight": 1}]}, r"nnunet_kd.method.terms\[0\] needs a name: dcd, logits"),
        ((DCD,), {"terms": [{"name": "logit"}]}, r"'logit' in nnunet_kd.method.terms\[0\].name: did you mean 'logits'"),
        ((DCD,), {"terms": [{"name": "dcd", "lvels": 1}]}, r"'lvels' in nnunet_kd.method.terms\[0\]: .*'levels'"),
        ((DCD,), {"terms": [{"name": "cwd"}], "levels": 1}, "has both 'terms' and 'levels'"),
        ((DCD,), {"terms": [{"name": "cwd"}], "add": [{"name": "dcd"}]}, "has both 'terms', .* and 'add'"),
        ((DCD,), {"add": [{"name": "dcd"}]}, r"nnunet_kd.method.add\[0\]: the training already has the term 'dcd'"),
        (
            (DCD,),
            {"add": [{"name": "cwd", "temperature": 0}]},
            r"method.add\[0\]: temperature must be a number above 0",
        ),
        ((DCD,), {"level": 1}, "unknown key 'level' in nnunet_kd.method: did you mean 'levels'"),
    ],
)
def test_errors_of_the_block(own, method, message):
    with pytest.raises(ValueError, match=message):
        names(own, method)
