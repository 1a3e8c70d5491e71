"""Micro-VM sandboxes for code nobody has reviewed.

from matchlock import Client, Sandbox

with Client() as client:
    client.launch(Sandbox("alpine:latest"))
    print(client.exec("echo hello").stdout)
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from .aio import AsyncClient
from .aio_processes import AsyncProcess, AsyncWatch
from .builder import (
    Sandbox,
)
from .client import (
    Client,
)
from .errors import (
    CommandError,
    MatchlockError,
    RPCError,
)
from .interception import (
    NETWORK_HOOK_ACTION_ALLOW,
    NETWORK_HOOK_ACTION_BLOCK,
    NETWORK_HOOK_ACTION_MUTATE,
    NETWORK_HOOK_PHASE_AFTER,
    NETWORK_HOOK_PHASE_BEFORE,
    VFS_HOOK_ACTION_ALLOW,
    VFS_HOOK_ACTION_BLOCK,
    VFS_HOOK_OP_CHMOD,
    VFS_HOOK_OP_CLOSE,
    VFS_HOOK_OP_CREATE,
    VFS_HOOK_OP_MKDIR,
    VFS_HOOK_OP_OPEN,
    VFS_HOOK_OP_READ,
    VFS_HOOK_OP_READDIR,
    VFS_HOOK_OP_READLINK,
    VFS_HOOK_OP_REMOVE,
    VFS_HOOK_OP_REMOVE_ALL,
    VFS_HOOK_OP_RENAME,
    VFS_HOOK_OP_STAT,
    VFS_HOOK_OP_SYMLINK,
    VFS_HOOK_OP_SYNC,
    VFS_HOOK_OP_TRUNCATE,
    VFS_HOOK_OP_WRITE,
    VFS_HOOK_PHASE_AFTER,
    VFS_HOOK_PHASE_BEFORE,
    NetworkBodyTransform,
    NetworkHook,
    NetworkHookAction,
    NetworkHookPhase,
    NetworkHookRequest,
    NetworkHookRequestMutation,
    NetworkHookResponseMutation,
    NetworkHookResult,
    NetworkHookRule,
    NetworkInterceptionConfig,
    VFSActionRequest,
    VFSHookAction,
    VFSHookEvent,
    VFSHookOp,
    VFSHookPhase,
    VFSHookRule,
    VFSInterceptionConfig,
    VFSMutateRequest,
)
from .options import (
    Config,
    CreateOptions,
    DiskConfig,
    HostIPMapping,
    ImageConfig,
    MountConfig,
    NetworkArrival,
    PortForward,
    Secret,
)
from .processes import (
    Process,
    Watch,
)
from .results import (
    AllowList,
    ChangeKind,
    ExecInteractiveResult,
    ExecPipeResult,
    ExecResult,
    ExecStreamResult,
    FileChange,
    FileInfo,
    MountInfo,
    PortForwardBinding,
    ProcessInfo,
    VolumeInfo,
)

try:
    __version__ = _version("matchlock")
except PackageNotFoundError:
    # Imported from a source tree that was never installed.
    __version__ = "0"

__all__ = [
    "NETWORK_HOOK_ACTION_ALLOW",
    "NETWORK_HOOK_ACTION_BLOCK",
    "NETWORK_HOOK_ACTION_MUTATE",
    "NETWORK_HOOK_PHASE_AFTER",
    "NETWORK_HOOK_PHASE_BEFORE",
    "VFS_HOOK_ACTION_ALLOW",
    "VFS_HOOK_ACTION_BLOCK",
    "VFS_HOOK_OP_CHMOD",
    "VFS_HOOK_OP_CLOSE",
    "VFS_HOOK_OP_CREATE",
    "VFS_HOOK_OP_MKDIR",
    "VFS_HOOK_OP_OPEN",
    "VFS_HOOK_OP_READ",
    "VFS_HOOK_OP_READDIR",
    "VFS_HOOK_OP_READLINK",
    "VFS_HOOK_OP_REMOVE",
    "VFS_HOOK_OP_REMOVE_ALL",
    "VFS_HOOK_OP_RENAME",
    "VFS_HOOK_OP_STAT",
    "VFS_HOOK_OP_SYMLINK",
    "VFS_HOOK_OP_SYNC",
    "VFS_HOOK_OP_TRUNCATE",
    "VFS_HOOK_OP_WRITE",
    "VFS_HOOK_PHASE_AFTER",
    "VFS_HOOK_PHASE_BEFORE",
    "AllowList",
    "AsyncClient",
    "AsyncProcess",
    "AsyncWatch",
    "ChangeKind",
    "Client",
    "CommandError",
    "Config",
    "CreateOptions",
    "DiskConfig",
    "ExecInteractiveResult",
    "ExecPipeResult",
    "ExecResult",
    "ExecStreamResult",
    "FileChange",
    "FileInfo",
    "HostIPMapping",
    "ImageConfig",
    "MatchlockError",
    "MountConfig",
    "MountInfo",
    "NetworkArrival",
    "NetworkBodyTransform",
    "NetworkHook",
    "NetworkHookAction",
    "NetworkHookPhase",
    "NetworkHookRequest",
    "NetworkHookRequestMutation",
    "NetworkHookResponseMutation",
    "NetworkHookResult",
    "NetworkHookRule",
    "NetworkInterceptionConfig",
    "PortForward",
    "PortForwardBinding",
    "Process",
    "ProcessInfo",
    "RPCError",
    "Sandbox",
    "Secret",
    "VFSActionRequest",
    "VFSHookAction",
    "VFSHookEvent",
    "VFSHookOp",
    "VFSHookPhase",
    "VFSHookRule",
    "VFSInterceptionConfig",
    "VFSMutateRequest",
    "VolumeInfo",
    "Watch",
]
