"""Store the server's jobs in its own kit.  FLARE's default is a folder that all deployments on a host share."""

from __future__ import annotations

from pathlib import Path

from nvflare.app_common.storages.filesystem_storage import FilesystemStorage


class KitStorage(FilesystemStorage):
    """FLARE's file storage with a path relative to the kit.  FLARE's own class needs an absolute path.

    Args:
        root_dir: folder inside the kit; a provisioned server runs with its kit as working directory.  The folder is
            created if needed, and only its owner can read it.  `nvflare deploy prepare` sets an argument of this name
            to a path in the container's kit.

    Raises:
        ValueError: `root_dir` is outside the kit.
    """

    def __init__(self, root_dir: str = ".") -> None:
        root = (Path.cwd() / root_dir).resolve()
        if not root.is_relative_to(Path.cwd().resolve()):
            raise ValueError("root_dir must be inside the server's kit; it is outside")
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)  # also where it is the kit itself: FLARE creates files in it that everybody could read
        super().__init__(root_dir=str(root), uri_root="/")
