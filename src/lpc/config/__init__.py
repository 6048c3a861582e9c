"""The configuration: `models` has every key, `load` reads and checks files, `runs` and `specs` derive runs and
parameters."""
