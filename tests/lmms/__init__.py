"""lmms-eval's own evaluator on a local task, in an environment that has it: `.ci/lmms` runs these, pytest does not."""
