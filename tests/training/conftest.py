"""Makes `training_toys` importable by the tests, and by the scripts that they start."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
