"""`python -m worldmodel` is the command `worldmodel`."""

import importlib

if __name__ == "__main__":
    # By name, because the scripts stand above this package: nothing here may depend on them.
    importlib.import_module("worldmodel.scripts.cli").entry_point()
