"""Losses with kinks at their minimum, by an interior point method.

Such a loss is a sum of ``max(high (t - p), low (t - p))`` over its kinks t. With
``t - p = over - under``, both positive, and for each kink a slope between low and high, the minimum
has ``over (high - slope) = under (slope - low) = 0``. A step is Newton's toward where all these
products are a small number; what it solves is a ridge regression, with large weights where a sample
is at its kink.
"""

from __future__ import annotations

import numpy as np

from fastmtl.linear_direct import ROUNDING

# From the loss's parameter: how far each kink is from the target, low, and high.
KINKS = {
    "epsilon_insensitive": lambda epsilon: ((-epsilon, 0.0, 1.0), (epsilon, -1.0, 0.0)),
    "quantile": lambda quantile: ((0.0, quantile - 1.0, quantile),),
    "hinge": lambda parameter: ((0.0, 0.0, 1.0),),  # of a target 1; that of -1 is its mirror image
}
TO_THE_BOUND = 0.995  # the most of the way there that a step goes
PATIENCE = 8  # steps in which the gap should halve


class Interior:
    """Steps from a point of `linear_newton.Newton`, whose ridge problem and losses it uses."""

    def __init__(self, newton, loss, point):
        self.newton, self.stuck = newton, False
        self.kept = np.flatnonzero(newton.weight > 0)
        self.weight = newton.weight[self.kept, None]
        y = newton.target[self.kept, None]
        away, low, high = np.array(KINKS[loss](newton.parameter)).T
        if loss == "hinge":
            low, high = np.minimum(y, 0.0), np.maximum(y, 0.0)
        self.kink = y + away
        self.slope = np.zeros_like(self.kink) + (low + high) / 2
        self.above, self.below = high - self.slope, self.slope - low  # kept, as they lose no digits
        left = self.kink - self.of_kept(point.score)
        margin = max(np.abs(left).mean(), np.finfo(float).tiny)
        self.over, self.under = np.maximum(left, 0.0) + margin, np.maximum(-left, 0.0) + margin
        self.first, self.missing = point.value, 1.0  # share of the slopes that w does not follow
        self.best, self.gaps = point, []
        self.softness = self.least_softness()

    def of_kept(self, values):
        return values[self.kept, None]

    def least_softness(self):
        """How far a score has to be moved, for a unit of its slope, so that the weights leave the
        penalty its digits."""
        newton, shared, own = self.newton, 0.0, 0.0
        mixing, kappa = newton.factors
        newton.problem.weigh(newton.target, newton.weight)
        for tasks, gram in newton.problem.grams():
            longest = np.einsum("tii->ti", gram)[:, : newton.q].max(axis=1, initial=0.0)
            shared += np.sum(longest * (mixing[tasks] ** 2).sum(axis=1))
            own = max(own, (longest * kappa[tasks]).max(initial=0.0))
        most = max(shared, own)
        return 2 * self.kink.shape[1] * ROUNDING * newton.problem.width * most / newton.strength

    def step(self, point):
        """The next point, and minus what the objective may be above the least there."""
        newton, weight, above, below = self.newton, self.weight, self.above, self.below
        stiffness = 1.0 / (self.over / above + self.under / below + self.softness)
        total = stiffness.sum(axis=1)
        target, ridge_weight = np.zeros((2, len(point.score)))
        ridge_weight[self.kept] = self.weight[:, 0] * total

        def toward(goal_above, goal_below):
            """What leads to over * above and under * below of this size, were they linear."""
            goal = self.kink - goal_above / above + goal_below / below + self.slope / stiffness
            target[self.kept] = np.einsum("ij,ij->i", stiffness, goal) / total
            newton.problem.weigh(target, ridge_weight)
            aim = newton.at(newton.problem.solve(newton.factors, newton.strength))
            slope = stiffness * (goal - self.of_kept(aim.score)) - self.slope
            over = (goal_above + self.over * slope) / above - self.over
            under = (goal_below - self.under * slope) / below - self.under
            pairs = (over, self.over), (under, self.under), (-slope, above), (slope, below)
            nearest = max(np.max(-change / room) for change, room in pairs)
            return aim, slope, over, under, TO_THE_BOUND / max(nearest, TO_THE_BOUND)

        def size(over, above, under, below):
            return np.sum(weight * (over * above + under * below))

        # Where the products shrink to at once says how far to go for, and how they bend there.
        _, slope, over, under, share = toward(0.0, 0.0)
        now = size(self.over, above, self.under, below)
        after = size(
            self.over + share * over,
            above - share * slope,
            self.under + share * under,
            below + share * slope,
        )
        goal = now / (2 * slope.size) * (after / now) ** 3 / weight
        aim, slope, over, under, share = toward(goal + over * slope, goal - under * slope)
        self.over += share * over
        self.under += share * under
        self.slope += share * slope
        self.above -= share * slope
        self.below += share * slope
        self.missing *= 1.0 - share
        return self.judge(newton.move(point, aim, share))

    def judge(self, point):
        newton = self.newton
        if point.value < self.best.value:
            self.best = point
        # Where w follows the slopes, they are a point of the dual problem. A shared part of scores
        # takes digits and adds nothing, for its slopes cancel.
        score, weight = self.of_kept(point.score), self.weight
        left = self.of_kept(point.loss) - (self.slope * (self.kink - score)).sum(axis=1)[:, None]
        if newton.kind != "none":
            score = score - np.average(score, weights=weight)
        followed = newton.strength * newton.inner(point.solution, point.solution)
        followed -= np.sum(weight * self.slope * score)
        gap = np.sum(weight * left) + abs(followed) + self.missing * self.first
        self.gaps.append(gap if np.isfinite(gap) else np.inf)
        recent, earlier = self.gaps[-PATIENCE:], self.gaps[:-PATIENCE]
        self.stuck = not np.isfinite(gap) or (earlier and min(recent) > min(earlier) / 2)
        return (self.best, -min(self.gaps)) if self.stuck else (point, -gap)
