"""Read by every interpreter that has this folder on its PYTHONPATH: `everstep launch --lightning-alias` puts it there.

So workers, and what they spawn, have the alias before their first line. The user's own sitecustomize runs after.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

from everstep.launch.lightning_alias import install

install()

_here = Path(__file__).parent
_spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if Path(path) != _here])
if _spec is not None and _spec.loader is not None:
    sys.modules["sitecustomize"] = _module = module_from_spec(_spec)
    _spec.loader.exec_module(_module)
