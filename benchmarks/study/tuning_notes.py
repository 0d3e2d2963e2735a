"""The sentences about the decisions made in the tuning part of the study, with figures computed from its runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.study.figures import PartFigures, each, each_signed, require, signed, span
from benchmarks.study.parts import BASELINE
from nnunet_kd.study.runs import TEACHER

LONGER, LONGEST = "NoKD, twice as long", "NoKD, four times as long"
AT_ONCE = "DCD 1, no ramp"  # DCD of weight 1 from the first epoch


def tuning(parts: Mapping[str, PartFigures]) -> list[str]:
    """Return the decisions, one paragraph each."""
    part, spread = parts["tuning"], parts["spread"]
    return [
        _opening(part, spread),
        "- **What was seen before.** The values were chosen on these cases alone. But three of the sweeps were started "
        "after some runs of fold 0 at r = 4, replaced since then, had shown a need for them: those of dual "
        "self-distillation (44.6 with its authors' weight), of DCD (59.9, and 59.8 for NoKD) and of the pruned start "
        "(62.4, and 62.8 with the fitted one). The runs at r = 8 and on the hippocampus came after all choices.",
        _schedule(part),
        _weights(part, spread),
        _dcd(part),
        _recipe(part),
    ]


def _opening(part: PartFigures, spread: PartFigures) -> str:
    seeds = spread.dice(BASELINE)
    random, fitted, pruned = (np.std(spread.dice(row), ddof=1) for row in (BASELINE, "reconstructed", "pruned"))
    require(abs(part.dice(BASELINE)[0] - seeds.min()) < 1e-9, "the seed of the tuning is the lowest of NoKD's")
    return (
        "These decisions were made on one seed, to be read with the next part: the standard deviation between seeds is "
        f"{random:.1f} points of Dice for a student from random weights, {fitted:.1f} for a fitted one and "
        f"{pruned:.1f} for a pruned one. The gains below are over NoKD with this seed, {seeds.min():.1f}, the lowest "
        f"of its three seeds, whose mean is {seeds.mean():.1f}: the pruned start gains {each([part.gain('pruned')])} "
        f"points here and {each([spread.gain('pruned')])} over three seeds."
    )


def _schedule(part: PartFigures) -> str:
    more = part.gain(LONGEST, LONGER)
    return (
        f"- **Schedule.** A student from random weights gains {each([part.gain(LONGER)])} points from twice the "
        f"schedule and {each([part.gain('reconstructed')])} from the fitted start. With four times the schedule, 80 "
        f"epochs, it comes within {each([-part.gain(LONGEST, TEACHER)])} points of this teacher, which was trained for "
        f"{part.record.teacher['epochs']}. The reported parts have 40 epochs: more than most rows here, but not enough "
        f"for NoKD, which gains another {each([more])} points from 40 to 80 epochs, {lacking_share(part):.0f} % of its "
        "distance to the teacher. Two CPU cores do not allow much more."
    )


def lacking_share(part: PartFigures) -> float:
    """Return the share of its distance to the teacher that NoKD closes from 40 to 80 epochs (%)."""
    return 100 * part.gain(LONGEST, LONGER) / part.gain(TEACHER, LONGER)


def _weights(part: PartFigures, spread: PartFigures) -> str:
    harmful = {method: part.gain(f"{method} {weight}") for method, weight in (("CWD", "3"), ("DualSelfKD", "1"))}
    kept = {"FitNets": ("1", "0.1"), "FreeKD": ("1", "0.1"), "LogitsKD": ("0.3", "0.03"), "IFVD": ("200", "20")}
    require(max(harmful.values()) < -5, "the authors' weights of CWD and dual self-distillation do harm")
    require(abs(part.gain("CWD 0.03")) < 0.5, "a hundredth of CWD's weight costs nothing")
    require(
        all(part.gain(f"{method} {weight}") > 0 for method, (weight, _) in kept.items()),
        "the other methods' authors' weights are above NoKD",
    )
    better = [method for method, (own, tenth) in kept.items() if part.gain(f"{method} {tenth}", f"{method} {own}") > 0]
    require(better == ["FitNets"], "a tenth of the authors' weight is better for FitNets alone")
    return (
        f"- **Weights.** CWD's own weight leaves the student {each([-harmful['CWD']])} points below NoKD and a tenth "
        f"of it {each([-part.gain('CWD 0.3')])} below; a hundredth changes Dice by {signed(part.gain('CWD 0.03'))}. "
        f"Dual self-distillation's own weight leaves it {each([-harmful['DualSelfKD']])} points below; a tenth is "
        f"{each([part.gain('DualSelfKD 0.1')])} above and a hundredth {each([part.gain('DualSelfKD 0.01')])}. These "
        "two methods have the best of three weights as their default, since their authors' numbers do harm. The other "
        "methods keep their authors' numbers, which are above NoKD; a tenth is better for FitNets alone, by "
        f"{each([part.gain('FitNets 0.1', 'FitNets 1')])} points. (IFVD's loss is applied to every stage here, "
        "with a divergence summed over the classes, where its authors use one feature map and the mean; in these runs "
        "the class map of a stage took the central voxel of every cell, where theirs, and by now this one, takes the "
        "first.) FreeKD and "
        f"IFVD are {each([part.gain('FreeKD 1'), part.gain('IFVD 200')])} points above NoKD of the same seed; NoKD's "
        f"own seeds differ by up to {np.ptp(spread.dice(BASELINE)):.1f} points."
    )


def _dcd(part: PartFigures) -> str:
    more = part.gain("DCD 3, no ramp"), part.gain("DCD 10, no ramp")
    require(part.gain(AT_ONCE) > max(more), "a weight of 1 is the best of those without a ramp")
    require(part.gain("DCD") < 0.5, "DCD's own weight changes next to nothing")
    return (
        "- **DCD.** All runs have the exact transform and learned projections, the defaults. Its authors' weight of "
        "0.01 is for the transform of their code, whose loss is several times smaller, and for projections that keep "
        "their random start; no run has these. Even so 0.01, under their ramp, has next to no effect in such a short "
        f"training: {signed(part.gain('DCD'))} points. A weight of 1 from the first epoch is "
        f"{each([part.gain(AT_ONCE)])} points above NoKD, and "
        f"{each([part.gain(f'{AT_ONCE}, twice as long', LONGER)])} with twice the schedule; weights of 3 and 10 are "
        f"{span(np.array(more))} points above it. Under the ramp a weight of 1 is {each([part.gain('DCD 1')])} points "
        f"above NoKD and a weight of 3 {each([part.gain('DCD 3')])}. These runs cannot tell whether a weight of 1 "
        "would suit the thousand epochs that the authors train for, so the default is their number, and the reported "
        "parts have both."
    )


def _recipe(part: PartFigures) -> str:
    starts = [part.gain(f"{start}, EMA 0.99, twice as long", LONGER) for start in ("reconstructed", "pruned")]
    fitted = [f"reconstructed + {term}" for term in ("logits", "logits 0.9", "DCD 0.3", "FitNets", "CWD", "FreeKD")]
    early = part.gain("reconstructed + IFVD", "reconstructed")
    late = part.gain("reconstructed + IFVD, EMA 0.99, twice as long", "reconstructed, EMA 0.99, twice as long")
    beside_pruned = [part.gain(f"pruned + {term}", "pruned") for term in ("IFVD", AT_ONCE)]
    averaged = [
        part.gain("EMA 0.99"),
        part.gain("reconstructed, EMA 0.99", "reconstructed"),
        part.gain("reconstructed, EMA 0.99, twice as long", "reconstructed, twice as long"),
    ]
    require(max(part.gain(row, "reconstructed") for row in fitted) < 0.3, "no term but IFVD's helps the fitted start")
    require(early > 1 and late < 0, "IFVD helps the fitted start in the short schedule alone")
    require(max(map(abs, beside_pruned)) < 0.5, "terms beside the pruned start change little")
    require(part.gain("pruned") > part.gain("reconstructed"), "the pruned start is the best")
    return (
        "- **Recipe.** Of everything the teacher provides, its weights help most. Copying every 4th channel loses "
        f"{each([-part.gain('every 4th channel')])} points. Fitting these channels ('reconstructed') gains "
        f"{each([part.gain('reconstructed')])}, and fitting the channels that pruning keeps ('pruned') "
        f"{each([part.gain('pruned')])}; with averaged weights and twice the schedule they gain {each(starts)} over "
        "NoKD with that schedule. Terms added to the fitted start change little or do harm, except for IFVD's, which "
        f"gains {each([early])} points in 20 epochs and loses {each([-late])} in 40. Added to the pruned start, the "
        f"terms of IFVD and DCD change Dice by {each_signed(beside_pruned)}. So the recipe is the pruned start without "
        f"a term. Averaged weights gained {each([min(averaged)])} to {each([max(averaged)])} points without a term, "
        "and cost nothing, so the recipe has them. It was chosen from about twenty starts and mixtures, DCD's weight "
        "of 1 from seven settings, and the other methods' weights from two or three. The reported parts include NoKD "
        "with averaged weights too."
    )
