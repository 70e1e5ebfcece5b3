"""A run as a TOML file: its problem, prior, model, training and data.

```python
import retune

run = retune.config.load("inpaint", ["model.depth=5"])  # a run that ships, or the name of your file
net = retune.build.network_of(run, channels=3)
```
"""

from __future__ import annotations

from retune.config.comparison import CompareConfig
from retune.config.read import from_dict, load, shipped
from retune.config.sections import (
    Config,
    DataConfig,
    FidelityConfig,
    GradientConfig,
    MapConfig,
    ModelConfig,
    OptimiserConfig,
    PriorConfig,
    ProblemConfig,
)
from retune.config.write import starting_point, to_toml

__all__ = [
    "CompareConfig",
    "Config",
    "DataConfig",
    "FidelityConfig",
    "GradientConfig",
    "MapConfig",
    "ModelConfig",
    "OptimiserConfig",
    "PriorConfig",
    "ProblemConfig",
    "from_dict",
    "load",
    "shipped",
    "starting_point",
    "to_toml",
]
