"""Words that settings choose from; loads nothing, as completion and help need them at once."""

SAMPLERS = ("tpe", "gp", "random", "grid", "qmc")
SCHEDULERS = ("asha", "hyperband", "median", "none")
PRECISIONS = ("float32", "bfloat16")
SPLITS = ("train", "val", "test")
