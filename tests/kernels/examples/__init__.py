"""An example of every public kernel, for what is asked of all of them: a module a family.

A module holds `EXAMPLES`, {public name, or "name: variant": Example}.
"""

import importlib
import pkgutil

MODULES = [
    importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
    if module.name != "example"
]
EXAMPLES = {name: example for module in MODULES for name, example in module.EXAMPLES.items()}
