"""Every data type and error under one roof, where releases 0.1 and 0.2 had them.

Nothing is defined here.
"""

# ruff: noqa: F403
from .errors import CommandError as CommandError
from .errors import MatchlockError as MatchlockError
from .errors import RPCError as RPCError
from .interception import *
from .options import *
from .results import *
