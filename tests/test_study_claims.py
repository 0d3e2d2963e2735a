"""Every figure in the study's own words, in the README and on its page, is that of the kept runs."""

import re
from functools import cache

import numpy as np

from benchmarks.study.page import README
from benchmarks.study.parts import BASELINE, METHODS, PARTS, STRONG
from benchmarks.study.record import STUDENT, Record
from nnunet_kd.evaluation.statistics import mean_and_error, paired_tests
from nnunet_kd.evaluation.summary import compare
from nnunet_kd.study.runs import TEACHER

LOSSES = [name for name in METHODS if name not in (BASELINE, "NoKD, averaged", "KD")]


@cache
def scores(part):
    return Record(part).scores()


@cache
def compared(part):
    return compare(scores(part), PARTS[part].baseline, TEACHER)


def dice(part, row, seeds=slice(None)):
    """Mean Dice of every seed (%)."""
    return 100 * np.array([mean_and_error(run)[0] for run in scores(part).runs(row)])[seeds]


def gains(part, row, other=None, seeds=slice(None)):
    """Over another row, the baseline, of every seed (points)."""
    return dice(part, row, seeds) - dice(part, other or PARTS[part].baseline, seeds)


def gain(*words, **named):
    return float(gains(*words, **named).mean())


def gap(part, row, seeds=slice(None)):
    """Closed (%)."""
    return 100 * gain(part, row, seeds=seeds) / (dice(part, TEACHER)[0] - dice(part, BASELINE, seeds).mean())


def each(numbers, digits=1):
    """Without their signs, and a zero is one."""
    *some, last = (f"{abs(number):.{digits}f}" for number in numbers)
    return f"{', '.join(some)} and {last}"


def ratio(part, quantity):
    costs = Record(part).costs()
    return quantity(costs[TEACHER]) / quantity(costs[STUDENT])


def parameters(cost):
    return cost.network.parameters


def flops(cost):
    return cost.network.flops


def hd95(part, row, structure):
    """Of every seed (mm)."""
    return np.array([mean_and_error(run)[0] for run in scores(part).runs(row, "hd95", structure)])


def in_the_readme():
    r4, r8, hip, small = "brats_r4", "brats_r8", "hippocampus_r4", "hippocampus_r8"
    two = slice(0, 2)
    nokd = dice(r4, BASELINE)
    yield f"It closes {gap(r4, 'KD'):.0f} % of the gap on the BraTS patches at r = 4 and {gap(r8, 'KD'):.0f} % at r = 8"
    yield f"and {gap(hip, 'KD'):.0f} % and {gap(small, 'KD'):.0f} % on the hippocampus"
    assert gap(small, STRONG) < gap(small, "KD") / 2
    yield f"DCD of weight 1 closes {gap(small, STRONG):.0f} %, less than half of what KD does"
    changed = [gain("tuning", f"pruned + {term}", "pruned") for term in ("IFVD", "DCD 1, no ramp")]
    yield "changed {:+.1f} (IFVD) and {:+.1f} (DCD) points".format(*changed)
    longer = gain("tuning", "NoKD, four times as long", "NoKD, twice as long")
    yield f"NoKD gains {longer:.1f} points from 40 to 80 epochs"
    lacked = dice("tuning", TEACHER)[0] - dice("tuning", "NoKD, twice as long")[0]
    assert 0.62 < longer / lacked < 0.70
    yield "two thirds of what it lacks to the teacher"
    yield f"gains {gain('tuning', 'pruned, EMA 0.99, twice as long', 'NoKD, twice as long'):.1f} with 40"
    yield f"third seed at r = 4 is {nokd[0] - nokd[2]:.1f} and {nokd[1] - nokd[2]:.1f} points below"
    yield f"without it KD closes {gap(r4, 'KD', two):.0f} %"
    assert 0.3 < max(gain(r4, loss, seeds=two) for loss in LOSSES) < 0.4
    yield "no loss is more than 0.4 points above NoKD"

    yield f"1/{ratio(r4, parameters):.1f} of the teacher's parameters and 1/{ratio(r4, flops):.1f} of its FLOPs"
    yield f"{100 / ratio(r4, lambda cost: cost.seconds):.0f} % of its time a case"
    assert ratio(r4, lambda cost: cost.peak_bytes) < 1.05  # no less memory
    yield f"is {each(gains(r4, 'KD'))} points above NoKD in the three seeds"
    averaged = gains(r4, "NoKD, averaged")
    yield f"averaging alone gives {min(averaged):.1f} to {max(averaged):.1f}"
    yield f"changes {gain(r4, 'DCD'):.2f} points on average"
    yield f"it is {each(gains(r4, STRONG))} points above"
    assert (gains(r4, STRONG) > 0).all() and gains(r4, "FreeKD").round(1).min() == 0
    yield f"FreeKD is {each(gains(r4, 'FreeKD'))} above"
    yield "IFVD {:+.1f}, {:+.1f} and {:+.1f}".format(*gains(r4, "IFVD"))
    assert (gains(r4, "DualSelfKD") < 0).all()
    yield (
        f"DualSelfKD {-gain(r4, 'DualSelfKD'):.1f} and in every seed, LogitsKD {-gain(r4, 'LogitsKD'):.1f}, CWD "
        f"{-gain(r4, 'CWD'):.1f}, DCD + logits {-gain(r4, 'DCD + logits'):.1f}"
    )
    assert abs(gain(r4, "FitNets")) < 0.05
    yield "FitNets is level"

    yield f"1/{ratio(r8, parameters):.0f} of the parameters and 1/{ratio(r8, flops):.0f} of the FLOPs"
    yield f"closes {gap(r8, 'KD'):.0f} % of the gap: it is {each(gains(r8, 'KD'))} points above NoKD"
    assert (gains(r8, STRONG) > 0).all() and compared(r8)[STRONG].difference.low < 0
    yield f"DCD of weight 1 is {each(gains(r8, STRONG))} above"
    p_value = paired_tests({STRONG: dice(r8, STRONG)}, dice(r8, BASELINE))[STRONG].t
    yield f"(p = {p_value:.2f} over the seeds, not corrected for eleven methods)"
    assert len(METHODS) - 1 == 11 and (gains(r8, "FreeKD") > 0).sum() == 2
    yield f"FreeKD {gain(r8, 'FreeKD'):.1f} on average, above in two of three"
    assert (gains(r8, "CWD") < 0).all()
    yield (
        f"DualSelfKD {-gain(r8, 'DualSelfKD'):.1f}, CWD {-gain(r8, 'CWD'):.1f} and in every seed, IFVD "
        f"{-gain(r8, 'IFVD'):.1f}, FitNets {-gain(r8, 'FitNets'):.1f}"
    )
    assert max(abs(gain(r8, row)) for row in ("LogitsKD", "DCD + logits")) < 0.1
    yield "LogitsKD and DCD + logits are level"

    bands = {name: dice("ablation", f"{STRONG}, {name}").mean() for name in ("detail", "hhh", "all", "lll")}
    yield f"{dice('ablation', STRONG).mean():.1f} % Dice with the directional bands"
    yield "{detail:.1f}, with all details; {hhh:.1f} with the band".format(**bands)
    yield "{all:.1f} with all bands, {lll:.1f} with the approximations".format(**bands)

    yield f"The gap is only {dice(hip, TEACHER)[0] - dice(hip, BASELINE).mean():.1f} points"
    yield f"closes {gap(hip, 'KD'):.0f} %: it is {each(gains(hip, 'KD'))} points above NoKD"
    assert max(abs(gains(hip, row)).max() for row in ("DCD", "NoKD, averaged")) < 0.1
    between = np.concatenate([gains(hip, row) for row in (STRONG, "FitNets", "CWD")])
    yield f"CWD between {max(between):.1f} above and {-min(between):.1f} below"
    yield f"FreeKD between {max(gains(hip, 'FreeKD')):.1f} above and {-min(gains(hip, 'FreeKD')):.1f} below"
    for row in ("DualSelfKD", "IFVD", "LogitsKD", "DCD + logits"):
        assert (gains(hip, row) < 0).all()
        yield f"{row} {each(gains(hip, row))}"

    long = "brats_long"
    lacks, beside = -gains(long, BASELINE, TEACHER), gains(long, "KD", TEACHER)
    assert (lacks < 0.5).sum() == 1 and 0.4 < abs(beside).max() < 0.5
    yield "KD is as good as the teacher in all three seeds, and NoKD in one of them"
    yield f"NoKD is {each(lacks)} points below its teacher, which had {Record(long).teacher['epochs']}"
    gained = compared(long)["KD"].difference
    yield f"KD is within 0.5 of the teacher in every seed, {100 * gained.value:.1f} above NoKD"
    yield f"with an interval from {100 * gained.low:.1f} to {100 * gained.high:.1f}"
    below = -gains(long, STRONG)
    yield f"DCD of weight 1 is {below[0]:.1f} and {below[1]:.1f} below NoKD and {-below[2]:.1f} above it"

    yield f"NoKD is {each(gains(small, TEACHER))} points below the teacher"
    yield f"(HD95 of {each(hd95(small, BASELINE, 'anterior'))} mm in the anterior label)"
    assert max(hd95(small, "KD", structure).max() for structure in scores(small).structures) < 2
    yield f"KD does not; it is {each(gains(small, 'KD'))} points above it and closes {gap(small, 'KD'):.0f} %"
    p_value = paired_tests({STRONG: dice(small, STRONG)}, dice(small, BASELINE))[STRONG].t
    yield f"DCD of weight 1 is {each(gains(small, STRONG))} above (p = {p_value:.2f} over the seeds)"
    above = ("CWD", "DCD", "FreeKD")
    assert {row for row in LOSSES if (gains(small, row) > 0).all()} == {STRONG, *above}
    yield "CWD {}, DCD as published {}, FreeKD {}".format(*(each(gains(small, row)) for row in above))
    fitnets = gains(small, "FitNets")
    yield f"FitNets is {fitnets[0]:.1f} and {fitnets[1]:.1f} above and {-fitnets[2]:.1f} below"
    below = ("NoKD, averaged", "IFVD", "LogitsKD", "DCD + logits", "DualSelfKD")
    assert all((gains(small, row) < 0).all() for row in below)
    yield "Averaging alone is {} below, IFVD {}, LogitsKD {}, DCD + logits {}, DualSelfKD {}".format(
        *(each(gains(small, row)) for row in below)
    )


def on_the_page():
    nokd = dice("spread", BASELINE)
    tuned = dice("tuning", BASELINE)[0]

    def above(row, other=BASELINE):
        return gain("tuning", row, other)

    deviations = [np.std(dice("spread", row), ddof=1) for row in (BASELINE, "reconstructed", "pruned")]
    yield "is {:.1f} points of Dice for a student from random weights, {:.1f} for a fitted one and {:.1f}".format(
        *deviations
    )
    assert tuned == min(nokd)
    yield f"{tuned:.1f}, the lowest of its three, whose mean is {nokd.mean():.1f}"
    yield f"gains {above('pruned'):.1f} here and {gain('spread', 'pruned'):.1f} over three seeds"
    longer = "NoKD, twice as long"
    yield f"gains {above(longer):.1f} points from twice the schedule and {above('reconstructed'):.1f} from the fitted"
    yield f"within {-above('NoKD, four times as long', TEACHER):.1f} points of this teacher"
    yield f"gains another {above('NoKD, four times as long', longer):.1f} points"
    yield f"{-above('CWD 3'):.1f} points behind NoKD, a tenth {-above('CWD 0.3'):.1f}, a hundredth none"
    assert 0 < above("CWD 0.03") < 0.5
    dual = [above(f"DualSelfKD {weight}") for weight in ("1", "0.1", "0.01")]
    yield f"{-dual[0]:.1f} behind, a tenth {dual[1]:.1f} ahead, a hundredth {dual[2]:.1f}"
    yield f"a tenth is better for FitNets alone, by {above('FitNets 0.1', 'FitNets 1'):.1f}"
    assert all(above(row) > 0 for row in ("FitNets 1", "FreeKD 1", "LogitsKD 0.3", "IFVD 200"))
    assert above("FreeKD 1", "FreeKD 0.1") > 0 and above("LogitsKD 0.3", "LogitsKD 0.03") > 0
    assert above("IFVD 200", "IFVD 20") > 0
    yield f"FreeKD's and IFVD's are {above('FreeKD 1'):.1f} and {above('IFVD 200'):.1f} points above"
    yield f"differ by up to {np.ptp(nokd):.1f}"
    yield f"changes next to nothing in so short a training: {above('DCD'):.1f}"
    strong = "DCD 1, no ramp"
    yield f"is {above(strong):.1f} points above NoKD, and {above(f'{strong}, twice as long', longer):.1f} with twice"
    assert f"{above('DCD 3, no ramp'):.1f}" == f"{above('DCD 10, no ramp'):.1f}"
    yield f"three and ten times as much {above('DCD 3, no ramp'):.1f}"
    yield f"the same weight is {above('DCD 1'):.1f} above, and three times as much {above('DCD 3'):.1f}"
    yield f"Copying every 4th channel loses {-above('every 4th channel'):.1f} points"
    yield f"('reconstructed') gains {above('reconstructed'):.1f}, fitting those that pruning leaves ('pruned')"
    starts = [above(f"{start}, EMA 0.99, twice as long", longer) for start in ("reconstructed", "pruned")]
    yield "beside NoKD's of that schedule, {:.1f} and {:.1f}".format(*starts)
    others = [above(f"reconstructed + {term}", "reconstructed") for term in ("logits", "DCD 0.3", "FitNets", "FreeKD")]
    assert max(others) < 0.3
    ifvd = above("reconstructed + IFVD", "reconstructed")
    late = above("reconstructed + IFVD, EMA 0.99, twice as long", "reconstructed, EMA 0.99, twice as long")
    yield f"which gives {ifvd:.1f} points in 20 epochs and takes {-late:.1f} in 40"
    beside = [above(f"pruned + {term}", "pruned") for term in ("IFVD", strong)]
    yield "IFVD's and DCD's change {:+.1f} and {:+.1f}".format(*beside)
    averaged = [
        above("EMA 0.99"),
        above("reconstructed, EMA 0.99", "reconstructed"),
        above("reconstructed, EMA 0.99, twice as long", "reconstructed, twice as long"),
    ]
    yield f"Averaged weights gave {min(averaged):.1f} to {max(averaged):.1f} points"

    r4, two = "brats_r4", slice(0, 2)
    seeds = dice(r4, BASELINE)
    yield f"third seed, {seeds[2]:.1f}, is {seeds[0] - seeds[2]:.1f} and {seeds[1] - seeds[2]:.1f} points below"
    yield "DCD of weight 1 gains {:.1f}, FreeKD {:.1f} and IFVD {:.1f}, and KD {:.1f}".format(
        *(gain(r4, row, seeds=two) for row in (STRONG, "FreeKD", "IFVD", "KD"))
    )
    yield f"{gap(r4, 'KD', two):.0f} % of the gap."

    hip = "hippocampus_r4"
    ends = np.concatenate([hd95(hip, BASELINE, structure) for structure in scores(hip).structures])
    assert {f"{value:.1f}" for value in ends} == {"1.7", "1.8"}
    logits = np.array([hd95(hip, row, "posterior") for row in ("LogitsKD", "DCD + logits")])
    assert {f"{value:.1f}" for value in logits[:, [0, 2]].ravel()} == {"15.6", "15.7"}
    assert logits[:, 1].max() < 1.85
    below = -np.array([gains(hip, row) for row in ("LogitsKD", "DCD + logits")])
    yield f"they are {below[:, [0, 2]].min():.1f} to {below[:, [0, 2]].max():.1f} points of Dice below"
    yield f"with which they are {below[:, 1].mean():.1f} below"
    worst = np.max([hd95(hip, "IFVD", structure) for structure in scores(hip).structures], 0)
    yield f"IFVD's is {each(worst)} mm"
    dual = np.max([hd95(hip, "DualSelfKD", structure) for structure in scores(hip).structures], 0)
    assert dual[:2].max() < 2.5
    yield f"DualSelfKD's {dual[2]:.1f} with seed 2; without that it is {each(gains(hip, 'DualSelfKD')[:2])} points"

    small = "hippocampus_r8"
    structures = scores(small).structures
    yield f"NoKD's HD95 is {each(hd95(small, BASELINE, 'anterior'))} mm in the anterior label"
    apart = [max(hd95(small, row, structure).max() for structure in structures) for row in (STRONG, "FreeKD", "KD")]
    yield "is never above {:.1f}, {:.1f} and {:.1f} mm".format(*apart)
    once = hd95(small, "CWD", "posterior")[0], hd95(small, "FitNets", "anterior")[2]
    yield "CWD's once {:.1f} mm, FitNets' once {:.1f}".format(*once)
    assert sum((hd95(small, row, structure) > 3).sum() for row in ("CWD", "FitNets") for structure in structures) == 2
    yield f"published is {each(hd95(small, 'DCD', 'anterior'))} mm"
    rows = ("IFVD", "LogitsKD", "DCD + logits", "DualSelfKD", BASELINE)
    *worse, own = (np.mean([hd95(small, row, structure) for structure in structures]) for row in rows)
    yield f"their mean HD95 is {min(worse):.1f} to {max(worse):.1f} mm, NoKD's {own:.1f}"

    rows = ("detail", "lll", "all", "hhh", "without-idwt", "energy")
    of = {name: gain("ablation", f"{STRONG}, {name}") for name in rows}
    yield f"All details do as well ({of['detail']:+.1f})"
    yield f"alone they cost {-of['lll']:.1f} points (6.5 in the paper), with all other bands {-of['all']:.1f}"
    assert dice("ablation", f"{STRONG}, hhh").mean() > dice("ablation", BASELINE).mean()
    yield f"is {-of['hhh']:.1f} points below the directional ones, and not below NoKD"
    yield f"(62.9 in the paper; {of['without-idwt']:+.1f} here)"
    assert (gains("ablation", f"{STRONG}, energy") < 0).all()
    yield f"is {-of['energy']:.1f} points below the mean a level"

    long = "brats_long"
    lacks = compared(long)[TEACHER].difference
    yield f"did: {each(-gains(long, BASELINE, TEACHER))} points in the seeds"
    assert lacks.low < 0 < lacks.high
    yield f"their mean, {100 * lacks.value:.1f}, holds 0"
    yield "by {:.1f}, {:.1f} and {:.1f} points".format(*gains(long, "KD", TEACHER))
    yield f"and {each(gains(long, 'KD'))} above NoKD"
    apart = [np.ptp(dice(long, row)) for row in ("KD", STRONG, BASELINE)]
    yield "differ by {:.1f} points at most, DCD's of weight 1 by {:.1f}, NoKD's by {:.1f}".format(*apart)
    below = -gains(long, STRONG)
    yield f"DCD is {below[0]:.1f} and {below[1]:.1f} below NoKD in the first two and {-below[2]:.1f} above in the last"


def plain(text):
    return re.sub(r"\s+", " ", text)


def test_where_a_loss_is_above_training_alone():
    """The README's first finding."""
    above = {name: set() for name, part in PARTS.items() if part.short}
    assert len(above) == 4
    for name in above:
        assert Record(name).whole_seeds() == [*PARTS[name].seeds], name
        assert compared(name)["KD"].difference.low > 0
        above[name] |= {loss for loss in LOSSES if compared(name)[loss].difference.low > 0}
    assert above.pop("hippocampus_r8") == {"DCD", STRONG, "CWD"}
    assert not any(above.values())


def test_readme():
    text = README.read_text()
    words = plain(text[text.index("## Does it work?") : text.index("## Use it")]).replace("`", "")
    assert [claim for claim in in_the_readme() if claim not in words] == []


def test_page():
    words = plain("\n".join(part.note for part in PARTS.values()))
    assert [claim for claim in on_the_page() if claim not in words] == []
