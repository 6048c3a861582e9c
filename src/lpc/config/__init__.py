"""The configuration: `models` has every key, `load` reads and checks files, `runs` and `specs` say what follows."""
