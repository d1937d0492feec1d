"""How each golden file calls the kernel it was recorded for: a module a family.

A module holds `ADAPTERS`, {name of the file: adapter}. An adapter takes the inputs of a case, by
the key they are recorded under, and returns {key: value} of everything recorded as a result.
"""

import importlib
import pkgutil

MODULES = [
    importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
    if module.name != "support"
]
ADAPTERS = {stem: adapter for module in MODULES for stem, adapter in module.ADAPTERS.items()}
