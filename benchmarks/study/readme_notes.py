"""What the README says of the study, in sentences whose figures are computed from the kept runs."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.study.figures import LOSSES, RECIPE, WORDS, PartFigures, each, listed, require, signed
from benchmarks.study.parts import BASELINE, DATA, PARTS, STRONG
from benchmarks.study.tuning_notes import AT_ONCE, LONGER, lacking_share
from nnunet_kd.study.runs import TEACHER

REPORTED = [name for name, part in PARTS.items() if part.short]
NEEDED = (*REPORTED, "brats_long", "tuning")

Figures = Mapping[str, PartFigures]


def above_the_table(parts: Figures) -> list[str]:
    """What was trained on what, and what the table shows."""
    brats, hippocampus = (parts[name].record.teacher["cases"] for name in ("brats_r4", "hippocampus_r4"))
    return [
        "We trained students of a quarter (r = 4) and an eighth (r = 8) of their teacher's width, on lesion-centred "
        f"patches of BraTS 2020 (four modalities; fold 0, {len(brats)} patches of {DATA['brats'].patients(brats)} "
        f"patients, mean of NCR, ED and ET) and on {DATA['hippocampus'].cases} cases of the Hippocampus of the Medical "
        f"Segmentation Decathlon (fold 0, {len(hippocampus)} cases, mean of anterior and posterior), all with a short "
        "schedule on a CPU. The table has the mean Dice with its standard error over the cases, and how much of the "
        "gap between NoKD, the student trained alone, and the teacher a method closes, with a bootstrap interval over "
        'cases and seeds, nominally 95 % and too narrow with so few seeds. "Averaged" is the moving average of the '
        "weights.",
    ]


def below_the_table(parts: Figures) -> list[str]:
    """What KD closes and costs, how often the losses help, and how far to trust it."""
    return [_gains(parts), _cost(parts), _losses(parts), _limits(parts)]


def _gains(parts: Figures) -> str:
    gap = {name: f"{parts[name].gap(RECIPE):.0f} %" for name in REPORTED}
    for name in REPORTED:
        require(parts[name].compared[RECIPE].difference.low > 0, f"KD is above NoKD in the part {name}")
    long, within = parts["brats_long"], 0.5
    close = {row: int((long.gains(row, TEACHER) > -within).sum()) for row in (RECIPE, BASELINE)}
    require(close[RECIPE] == len(long.dice(RECIPE)), "KD reaches the teacher with every seed of the long schedule")
    return (
        "**What it gains.** `nnUNetTrainerKD` (KD) starts the student from the teacher itself, pruned, and averages "
        f"its weights; it has no distillation loss. It closes {gap['brats_r4']} of the gap on the BraTS patches at "
        f"r = 4 and {gap['brats_r8']} at r = 8, and {gap['hippocampus_r4']} and {gap['hippocampus_r8']} on the "
        "hippocampus. Part of that is training time: with twice the schedule (BraTS, r = 4) KD comes within "
        f"{within} points of the teacher with all {WORDS[close[RECIPE]]} seeds, and NoKD with {WORDS[close[BASELINE]]}."
    )


def _cost(parts: Figures) -> str:
    r4, r8 = parts["brats_r4"], parts["brats_r8"]
    require(r4.cost_ratio(lambda cost: cost.peak_bytes) < 1.05, "the student needs no less memory")
    return (
        f"**What it costs.** On BraTS at r = 4 the student has 1/{r4.parameters:.1f} of the teacher's parameters and "
        f"1/{r4.flops:.1f} of its FLOPs, and takes {100 / r4.cost_ratio(lambda cost: cost.seconds):.0f} % of its time "
        f"per case on two CPU threads; at r = 8 it has 1/{r8.parameters:.0f} of the parameters and 1/{r8.flops:.0f} of "
        "the FLOPs. On patches so small it needs no less memory."
    )


def _losses(parts: Figures) -> str:
    above = {n: [loss for loss in LOSSES if parts[n].compared[loss].difference.low > 0] for n in REPORTED}
    helped = [name for name in REPORTED if above[name]]
    require(helped == ["hippocampus_r8"], "losses are above NoKD on the hippocampus at r = 8 alone")
    part = parts[helped[0]]
    for loss in above[helped[0]]:
        require((part.gains(loss) > 0).all(), f"{loss} is above NoKD with every seed")
    best = max(above[helped[0]], key=part.gap)
    require(part.gap(best) < part.gap(RECIPE) / 2, f"{best} closes less than half of what KD closes")
    on_top = [parts["tuning"].gain(f"pruned + {term}", "pruned") for term in ("IFVD", AT_ONCE)]
    names = {"DCD": "DCD as published", STRONG: "DCD of weight 1"}
    named = listed(names.get(loss, loss) for loss in above[helped[0]])
    return (
        f"**Whether a distillation loss helps.** In one of these {WORDS[len(REPORTED)]} settings, the hippocampus at "
        f"r = 8, {WORDS[len(above[helped[0]])]} of the {WORDS[len(LOSSES)]} losses are better than training alone, "
        f"with every seed and with an interval above 0: {named}. The best of them, {names.get(best, best)}, "
        f"closes {part.gap(best):.0f} % of the gap, less than half of what KD closes. In the "
        f"other {WORDS[len(REPORTED) - 1]} settings no interval of a loss is above 0. All but KD start from random "
        f"weights; on the cases for tuning, a loss on top of the pruned start changed Dice by {signed(on_top[0])} "
        f"(IFVD) and {signed(on_top[1])} (DCD) points."
    )


def _limits(parts: Figures) -> str:
    r4, long, tuned, two = parts["brats_r4"], parts["brats_long"], parts["tuning"], slice(0, 2)
    alone, gained = r4.dice(BASELINE), long.compared[RECIPE].difference
    require(alone.argmin() == 2, "the third seed of NoKD is its worst")
    longer = tuned.gain("NoKD, four times as long", LONGER)
    return (
        "**How far to trust it.** There are one fold, one teacher per data set, three seeds, and a schedule in which "
        "NoKD has not stopped improving: on the cases for tuning, with one seed, NoKD gains "
        f"{each([longer])} points from 40 to 80 epochs, {lacking_share(tuned):.0f} % of what it lacks to the teacher, "
        f"while KD's start and averaging gain {each([tuned.gain('pruned, EMA 0.99, twice as long', LONGER)])} with 40. "
        f"On BraTS at r = 4 with 80 epochs NoKD is {each(-long.gains(BASELINE, TEACHER))} points below its teacher, "
        f"which had {long.record.teacher['epochs']}, and KD is {each([100 * gained.value])} points above NoKD on "
        f"average, with an interval from {signed(100 * gained.low)} to {signed(100 * gained.high)}. So longer "
        "schedules may order the methods differently, and what a student gains from a teacher that was trained much "
        f"longer than itself was not tested. NoKD's third seed at r = 4 is {each(alone[:2] - alone[2])} points below "
        f"its other two; without it KD closes {r4.gap(RECIPE, two):.0f} % there, and the best loss is "
        f"{each([max(r4.gain(loss, seeds=two) for loss in LOSSES)])} points above NoKD. KD's runs began from starts "
        "whose last layer was fitted by least squares too, which could lose a structure at first; starts have "
        "been fitted differently since then."
    )
