"""The README's sentence about the study, and the summary on its page, with figures computed from the kept runs."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.study.figures import LOSSES, RECIPE, WORDS, PartFigures, each, listed, require, signed
from benchmarks.study.parts import BASELINE, DATA, PARTS, STRONG
from benchmarks.study.tuning_notes import AT_ONCE, LONGER, lacking_share
from nnunet_kd.study.runs import TEACHER

REPORTED = [name for name, part in PARTS.items() if part.short]
NEEDED = (*REPORTED, "brats_long", "tuning")

IN_README = {  # rows of the README's table, with what each is
    TEACHER: "the teacher",
    BASELINE: "the student, trained alone",
    "LogitsKD": "the student, with Hinton's loss",
    STRONG: "the student, with the best of {losses} losses (DCD, weight 1)",
    RECIPE: "the student, with nnUNetTrainerKD",
}

Figures = Mapping[str, PartFigures]


def below_the_readme_table(parts: Figures) -> list[str]:
    """Return the README's one sentence, which says what the table shows and how far to trust it."""
    means = {loss: sum(parts[name].gain(loss) for name in REPORTED) for loss in LOSSES}
    require(max(means, key=means.__getitem__) == STRONG, f"{STRONG} is the best loss on average")
    above = _losses_above(parts)
    schedule = {parts[name].record.part.schedule["num_epochs"] for name in REPORTED}
    require(len(schedule) == 1, "all parts have the same number of epochs")
    return [
        "The brackets have the share of the gap between teacher and student that is closed, and r divides the widths "
        "of the network. The data are patches of BraTS 2020 and the hippocampus data set of the Medical "
        f"Segmentation Decathlon. **This is {WORDS[len(parts[REPORTED[0]].dice(RECIPE))]} seeds, one fold, "
        f"one teacher per data set and only {schedule.pop()} short epochs on a CPU: part of what `nnUNetTrainerKD` "
        f"gains is training time, and in {WORDS[len(REPORTED) - len(above)]} of these {WORDS[len(REPORTED)]} settings "
        "no distillation loss is reliably better than training alone.**",
    ]


def above_the_table(parts: Figures) -> list[str]:
    """Return the paragraph that says what was trained on which data, and what the table shows."""
    brats, hippocampus = (parts[name].record.teacher["cases"] for name in ("brats_r4", "hippocampus_r4"))
    return [
        "We trained students with a quarter (r = 4) and an eighth (r = 8) of their teacher's width on lesion-centred "
        f"patches of BraTS 2020 (four modalities; fold 0, {len(brats)} patches of {DATA['brats'].patients(brats)} "
        f"patients, mean of NCR, ED and ET) and on {DATA['hippocampus'].cases} cases of the hippocampus data set of "
        f"the Medical Segmentation Decathlon (fold 0, {len(hippocampus)} cases, mean of anterior and posterior), all "
        "with a short schedule on a CPU. The table gives the mean Dice with its standard error over the cases, and the "
        "share of the gap between NoKD (the student trained alone) and the teacher that each method closes, with a "
        "bootstrap interval over cases and seeds. The interval is nominally 95 %, but too narrow with so few seeds. "
        '"Averaged" means the moving average of the weights.',
    ]


def below_the_table(parts: Figures) -> list[str]:
    """Return the paragraphs on what KD gains and costs, how often losses help, and how far to trust the results."""
    return [_gains(parts), _cost(parts), _losses(parts), _limits(parts)]


def _gains(parts: Figures) -> str:
    gap = {name: f"{parts[name].gap(RECIPE):.0f} %" for name in REPORTED}
    for name in REPORTED:
        require(parts[name].compared[RECIPE].difference.low > 0, f"KD is above NoKD in the part {name}")
    long, within = parts["brats_long"], 0.5
    close = {row: int((long.gains(row, TEACHER) > -within).sum()) for row in (RECIPE, BASELINE)}
    require(close[RECIPE] == len(long.dice(RECIPE)), "KD reaches the teacher with every seed of the long schedule")
    return (
        "**What it gains.** `nnUNetTrainerKD` (KD) starts the student as the pruned teacher and averages its weights; "
        f"it has no distillation loss. It closes {gap['brats_r4']} of the gap on the BraTS patches at "
        f"r = 4 and {gap['brats_r8']} at r = 8, and {gap['hippocampus_r4']} and {gap['hippocampus_r8']} on the "
        "hippocampus. Part of this gain is training time: with twice the schedule (BraTS, r = 4) KD comes within "
        f"{within} points of the teacher with all {WORDS[close[RECIPE]]} seeds, and NoKD with {WORDS[close[BASELINE]]}."
    )


def _cost(parts: Figures) -> str:
    r4, r8 = parts["brats_r4"], parts["brats_r8"]
    require(r4.cost_ratio(lambda cost: cost.peak_bytes) < 1.05, "the student needs no less memory")
    return (
        f"**What it costs.** On BraTS at r = 4 the student has 1/{r4.parameters:.1f} of the teacher's parameters and "
        f"1/{r4.flops:.1f} of its FLOPs, and takes {100 / r4.cost_ratio(lambda cost: cost.seconds):.0f} % of its time "
        f"per case on two CPU threads; at r = 8 it has 1/{r8.parameters:.0f} of the parameters and 1/{r8.flops:.0f} of "
        "the FLOPs. On patches as small as these it needs no less memory."
    )


def _losses_above(parts: Figures) -> dict[str, list[str]]:
    """Return the losses whose interval is above 0, for every part that has some."""
    above = {n: [loss for loss in LOSSES if parts[n].compared[loss].difference.low > 0] for n in REPORTED}
    return {name: losses for name, losses in above.items() if losses}


def _losses(parts: Figures) -> str:
    above = _losses_above(parts)
    helped = list(above)
    require(helped == ["hippocampus_r8"], "losses are above NoKD on the hippocampus at r = 8 alone")
    part = parts[helped[0]]
    for loss in above[helped[0]]:
        require((part.gains(loss) > 0).all(), f"{loss} is above NoKD with every seed")
    best = max(above[helped[0]], key=part.gap)
    require(part.gap(best) < part.gap(RECIPE) / 2, f"{best} closes less than half of what KD closes")
    on_top = [parts["tuning"].gain(f"pruned + {term}", "pruned") for term in ("IFVD", AT_ONCE)]
    names = {"DCD": "DCD with weight 0.01", STRONG: "DCD with weight 1"}
    named = listed(names.get(loss, loss) for loss in above[helped[0]])
    return (
        f"**Whether a distillation loss helps.** In one of these {WORDS[len(REPORTED)]} settings, the hippocampus at "
        f"r = 8, {WORDS[len(above[helped[0]])]} of the {WORDS[len(LOSSES)]} losses are better than training alone with "
        f"every seed and with an interval above 0: {named}. The best of them, {names.get(best, best)}, "
        f"closes {part.gap(best):.0f} % of the gap, less than half of what KD closes. In the "
        f"other {WORDS[len(REPORTED) - 1]} settings no loss has an interval above 0. All methods but KD start from "
        f"random weights; on the tuning cases, a loss added to the pruned start changed Dice by {signed(on_top[0])} "
        f"(IFVD) and {signed(on_top[1])} (DCD) points. DCD has the exact transform and learned projections here; its "
        "authors' weight of 0.01 is for the transform of their code, with which no run was made."
    )


def _limits(parts: Figures) -> str:
    r4, long, tuned, two = parts["brats_r4"], parts["brats_long"], parts["tuning"], slice(0, 2)
    alone, gained = r4.dice(BASELINE), long.compared[RECIPE].difference
    require(alone.argmin() == 2, "the third seed of NoKD is its worst")
    longer = tuned.gain("NoKD, four times as long", LONGER)
    return (
        "**How far to trust it.** The study has one fold, one teacher per data set, three seeds, and a schedule in "
        "which NoKD has not stopped improving: on the tuning cases, with one seed, NoKD gains "
        f"{each([longer])} points from 40 to 80 epochs, {lacking_share(tuned):.0f} % of its distance to the teacher, "
        "while KD's initial weights and averaging gain "
        f"{each([tuned.gain('pruned, EMA 0.99, twice as long', LONGER)])} points in 40 epochs. "
        f"On BraTS at r = 4 with 80 epochs NoKD is {each(-long.gains(BASELINE, TEACHER))} points below its teacher, "
        f"which was trained for {long.record.teacher['epochs']}, and KD is {each([100 * gained.value])} points above "
        f"NoKD on average, with an interval from {signed(100 * gained.low)} to {signed(100 * gained.high)}. So longer "
        "schedules may rank the methods differently. What a student gains from a teacher that was trained for much "
        f"longer than the student was not tested. NoKD's third seed at r = 4 is {each(alone[:2] - alone[2])} points "
        f"below its other two; without that seed KD closes {r4.gap(RECIPE, two):.0f} % of the gap, and the best loss "
        f"is {each([max(r4.gain(loss, seeds=two) for loss in LOSSES)])} points above NoKD. In KD's runs the last "
        "layer of the initial student was fitted by least squares too, which could lose a structure at first; it has "
        "been fitted to class probabilities since then."
    )
