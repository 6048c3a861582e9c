"""The tables of a project. Each module of this package, except `base`, is one table: adding a file adds a table.

Importing this package imports no table: the Snakefile needs the names alone, in every job, and pyarrow takes long.
"""

import importlib
import pkgutil

TABLES = tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
"""Names of all tables, sorted. A table's name is that of its module and of its CSV file."""


def definition(name: str):
    """Return the definition of table `name`, one of `TABLES`, as a `base.TableDefinition`."""
    return importlib.import_module(f"{__name__}.{name}").TABLE
