"""Where the server keeps jobs: in its own kit; FLARE's default is a folder that all deployments of a host share."""

from __future__ import annotations

from pathlib import Path

from nvflare.app_common.storages.filesystem_storage import FilesystemStorage


class KitStorage(FilesystemStorage):
    """FLARE's file storage below the kit, wherever the kit was put; FLARE itself wants an absolute path.

    Args:
        root_dir: folder in the kit, which is the working directory of a provisioned server; made if absent, readable
            by its owner only.  `nvflare deploy prepare` sets it under this name, to a path in the container's kit.

    Raises:
        ValueError: `root_dir` leaves the kit.
    """

    def __init__(self, root_dir: str = ".") -> None:
        root = (Path.cwd() / root_dir).resolve()
        if not root.is_relative_to(Path.cwd().resolve()):
            raise ValueError("root_dir must lie inside the server's kit; it does not")
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)  # the kit too, where it is the folder: FLARE makes what it puts there readable by all
        super().__init__(root_dir=str(root), uri_root="/")
