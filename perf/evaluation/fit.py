"""A straight line through measured points, and how far it is to be trusted where nothing was measured."""

import math
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond the table the normal distribution's.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042}
T_95_MANY = 1.960


def student_t(freedom):
    """The quantile of the next smaller number of degrees in the table: wider, never narrower, than the right one."""
    known = [degrees for degrees in T_95 if degrees <= freedom]
    return T_95[max(known)] if freedom <= 60 and known else T_95_MANY


@dataclass(frozen=True)
class Line:
    intercept: float
    slope: float
    deviation: float  # of a point from the line, standard
    count: int
    mean_x: float
    spread_x: float  # sum of squared distances from mean_x

    def at(self, x):
        return self.intercept + self.slope * x

    def error_at(self, x):
        """Half of the 95 % interval of a single new measurement at x (ordinary least squares); None: two points have no error."""
        if self.count < 3:
            return None
        leverage = 1 + 1 / self.count + (x - self.mean_x) ** 2 / self.spread_x
        return student_t(self.count - 2) * self.deviation * math.sqrt(leverage)


def fit(points):
    """Least squares through (x, y); None where all x are the same: there is no line then."""
    count = len(points)
    if count < 2:
        return None
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread_x = sum((x - mean_x) ** 2 for x, _ in points)
    if spread_x == 0:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread_x
    intercept = mean_y - slope * mean_x
    squares = sum((y - intercept - slope * x) ** 2 for x, y in points)
    return Line(intercept, slope, math.sqrt(squares / (count - 2)) if count > 2 else 0.0, count, mean_x, spread_x)
