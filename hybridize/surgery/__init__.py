"""Converting: where each tensor of the student comes from, and making the student.

Example:
    layout = teacher.layout.convert([3, 5], to="mamba2")
    student = convert(teacher, layout, init="from_attention", seed=17)
    print(plan_weights(teacher, layout).summary())

Read `weight_map` (the language of maps), `from_attention` (the map of each mixer), `apply` (making
the model), `stream` (the same from folder to folder, without holding one) and `calibrate` (fitting
the new mixers to a few rows of text before any training).
"""

from hybridize.surgery.apply import convert, plan_weights
from hybridize.surgery.calibrate import calibrate
from hybridize.surgery.weight_map import WeightMap

__all__ = ["WeightMap", "calibrate", "convert", "plan_weights"]
